# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Log on stdout, as one JSON object a line for Railway or as plain text for a person.

Railway reads stderr as level error. It parses single-line JSON that has `level` and `message`
(docs.railway.com/observability/logs). This module imports nothing beyond the standard library,
because gunicorn's parent process uses it too.
"""

import json
import logging
import os
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TextIO

from app.chassis import output
from app.chassis.output import Printed, Tally

request_id: ContextVar[str] = ContextVar("request_id", default="")

# Every LogRecord has these fields, "taskName" among them. All other fields came by `extra=`.
STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

encode: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode

BLANK: Final = vars(logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO"}))
"""Fields of an empty record of level INFO."""

# BLANK has the id of gunicorn's first process, and a worker has its own
os.register_at_fork(after_in_child=lambda: BLANK.update(process=os.getpid()))


class RequestRecord(logging.LogRecord):
    """Record that is cheap to make, because it does not look up its place in the code."""

    def __init__(
        self, name: str, method: str, path: str, status: int, duration_ms: float, client: str
    ) -> None:
        now = time.time()
        self.__dict__ = {
            **BLANK,
            "name": name,
            "msg": f"{method} {path} {status} {duration_ms:.1f} ms",
            "created": now,
            "msecs": now % 1 * 1000,
            "relativeCreated": BLANK["relativeCreated"] + (now - BLANK["created"]) * 1000,
            "method": method,
            "path": path,
            "status": status,
            "duration_ms": duration_ms,
            "client": client,
        }


@lru_cache(maxsize=8)
def second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in STANDARD_FIELDS}


def moment(record: logging.LogRecord) -> str:
    return f"{second(int(record.created))}.{int(record.msecs):03d}+00:00"


class JsonFormatter(logging.Formatter):
    """Formatter that writes one JSON object a record, with the request's id and extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        if type(record) is RequestRecord:
            return self.format_request(record)
        entry: dict[str, Any] = {
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "time": moment(record),
            "logger": record.name,
        }
        if identifier := request_id.get():
            entry["request_id"] = identifier
        entry |= extra_fields(record)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return encode(entry)

    def format_request(self, record: RequestRecord) -> str:
        """Build a request's JSON by hand. Requests are many, and an encoder is slow to start."""
        known = vars(record)
        fields = (
            f'"level": "info", "message": {encode(record.msg)}, "time": "{moment(record)}"'
            f', "logger": {encode(record.name)}, "request_id": {encode(request_id.get())}'
            f', "method": {encode(known["method"])}, "path": {encode(known["path"])}'
            f', "status": {known["status"]}, "duration_ms": {known["duration_ms"]}'
            f', "client": {encode(known["client"])}'
        )
        return "{" + fields + "}"


class TextFormatter(logging.Formatter):
    """Formatter that writes a line for a terminal, with the request's id shortened."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        identifier = request_id.get()
        return f"{line} [{identifier[:8]}]" if identifier else line


class LineHandler(logging.StreamHandler[TextIO]):
    """Handler that passes lines to the output thread, if stdout has one."""

    def emit(self, record: logging.LogRecord) -> None:
        if not isinstance(self.stream, Printed):
            super().emit(record)
            return
        output = self.stream.output
        try:
            if type(record) is RequestRecord:
                known = vars(record)
                output.put_request(
                    known["status"], known["duration_ms"], lambda: self.format(record)
                )
            else:
                line = f"{self.format(record)}\n".encode(errors="backslashreplace")
                output.put_line(line, important=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)


def capture(form: str, lines: int, file: int | None = None) -> None:
    """Stop waiting for the reader of the log, and limit the log to what the platform takes.

    Args:
        form: `json` or `text`.
        lines: Lines a second that are no warnings, for all processes together.
        file: File of another process's lines, to share them.
    """
    formatter = make_formatter(form)
    output.capture(lines, lambda tally: formatter.format(tally_record(tally)), file)


def tally_record(tally: Tally) -> logging.LogRecord:
    """Return a record that reports what was counted instead of written."""
    requests = sum(tally.statuses.values())
    counted = {
        "requests": requests,
        "other_lines": tally.lines,
        "warnings": tally.warnings,
        "dropped": tally.lost,
    }
    fields: dict[str, Any] = {name: number for name, number in counted.items() if number}
    told = ", ".join(f"{name} {number}" for name, number in fields.items())
    if requests:
        fields["statuses"] = tally.statuses
        fields |= {"p50_ms": tally.p50_ms, "p99_ms": tally.p99_ms}
        told += f" (p50 {tally.p50_ms} ms, p99 {tally.p99_ms} ms)"
    missed = tally.warnings or tally.lost
    level = logging.WARNING if missed else logging.INFO
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": f"Not in this log: {told}",
            **fields,
        }
    )


def make_formatter(form: str) -> logging.Formatter:
    return JsonFormatter() if form == "json" else TextFormatter()


def config(level: str, form: str) -> dict[str, Any]:
    """Return a logging.config dictionary that sends everything to stdout.

    Args:
        level: Lowest level that is written.
        form: `json` or `text`.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": make_formatter, "form": form}},
        "handlers": {
            "stdout": {
                "class": "app.chassis.logs.LineHandler",
                "formatter": "line",
                "stream": "ext://sys.stdout",
            }
        },
        "root": {"level": level, "handlers": ["stdout"]},
        # The handlers that gunicorn and uvicorn bring are removed, so that records reach the root
        "loggers": {
            name: {"level": level, "handlers": [], "propagate": True}
            for name in ("gunicorn.error", "uvicorn.error")
        }
        | {"alembic.runtime.plugins": {"level": "WARNING"}}
        | {
            name: {"handlers": [], "propagate": False}
            for name in ("gunicorn.access", "uvicorn.access")
        },
    }
