# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Logs on stdout: one JSON object a line for Railway, plain text for a person.

Railway reads stderr as level error and parses single-line JSON that has `level` and
`message` (docs.railway.com/observability/logs). This module imports nothing beyond the
standard library, because gunicorn's parent process uses it too.
"""

import json
import logging
import os
import time
from contextlib import nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")

# "taskName" and the rest of what a LogRecord always has, so that what remains came by `extra=`.
STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

encode: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode

BLANK: Final = vars(logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO"}))
"""What a record of level INFO has before anything is in it."""

# a worker is not gunicorn's first process
os.register_at_fork(after_in_child=lambda: BLANK.update(process=os.getpid()))


TOGETHER: Final = 2048
"""Characters that are written at once. A pipe keeps 4096 bytes in one piece (pipe(7)), so that the
lines of several workers do not mix; what is in a request's line takes two bytes at most."""


class RequestRecord(logging.LogRecord):
    """A record that is cheap to make: nobody asks where in the code a request was."""

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
    """One JSON object a record, with the request's id and the record's extra fields."""

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
        """The same for a request, by hand: there are many, and an encoder is slow to begin."""
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
    """A line for a terminal, with the request's id shortened."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        identifier = request_id.get()
        return f"{line} [{identifier[:8]}]" if identifier else line


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of requests that end together at once, and everything else immediately."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.lines: list[str] = []
        self.length = 0
        self.loop: object = None
        """The event loop that is about to write them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if type(record) is not RequestRecord or not self.keep(self.format(record)):
                self.write_lines()
                super().emit(record)
        except Exception:
            self.handleError(record)

    def keep(self, line: str) -> bool:
        """Whether an event loop will write it, once it has done what it is about to do."""
        import asyncio  # gunicorn's first process has none

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self.length + len(line) > TOGETHER:
            self.write_lines()
        self.lines.append(line + self.terminator)
        self.length += len(line)
        if self.loop is not loop:
            self.loop = loop
            loop.call_soon(self.flush)
        return True

    def write_lines(self) -> None:
        lines, self.lines, self.length = self.lines, [], 0
        if lines:
            self.stream.write("".join(lines))

    def flush(self) -> None:
        with self.lock or nullcontext():
            self.loop = None
            self.write_lines()
            super().flush()


def config(level: str, form: str) -> dict[str, Any]:
    """A logging.config dictionary that sends everything to stdout.

    Args:
        level: Lowest level that is written.
        form: `json` or `text`.
    """
    formatter = JsonFormatter if form == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {
            "stdout": {
                "class": "app.chassis.logs.LineHandler",
                "formatter": "line",
                "stream": "ext://sys.stdout",
            }
        },
        "root": {"level": level, "handlers": ["stdout"]},
        # gunicorn and uvicorn bring handlers of their own; these reach the root instead.
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
