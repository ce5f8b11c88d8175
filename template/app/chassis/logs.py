# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Log on stdout, as one JSON object a line for Railway or as plain text for a person.

Railway reads stderr as level error. It parses single-line JSON that has `level` and `message`, and
drops the lines of a replica beyond 500 a second, warnings among them
(docs.railway.com/observability/logs). So less than that is written here. A write to a pipe that
nobody reads never returns, so a separate thread makes all writes. This module imports nothing
beyond the standard library, because gunicorn's first process uses it too.
"""

import atexit
import fcntl
import io
import json
import logging
import math
import mmap
import os
import select
import sys
import tempfile
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from typing import IO, TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

request_id: ContextVar[str] = ContextVar("request_id", default="")

IMPORTANT_LINES: Final = 100  # Warnings and errors a second, in addition to the other lines
ROOM: Final = 256 * 1024  # Bytes that may wait. Warnings and errors may use as many again
PIECE: Final = 4096  # Bytes that a pipe keeps together (PIPE_BUF), even if others write to it
LEFT: Final = 10  # Lines a second that requests leave free for other lines
LINGER: Final = 0.05  # Seconds in which lines gather, so that not each of them wakes a thread
EXIT_TIMEOUT: Final = 1.0  # Seconds after which a process ends that can write none of its lines
SPAN: Final = 1.05  # Seconds of a window, because a line is read up to 50 ms after it was noted
TELL_EVERY: Final = 1.0  # Seconds between two lines that report what was counted
SLOTS: Final = 32  # Processes that count at once, which is twice the maximum number of workers
BUCKETS: Final = 512  # Classes of durations, sixteen for each doubling from 0.01 ms on

# Places of a process's counts of other lines, warnings, unwritten lines, answers and durations
LINES, WARNINGS, LOST, STATUS = 0, 1, 2, 3
DURATION: Final = STATUS + 600
WIDTH: Final = DURATION + BUCKETS

STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Fields of every record, "taskName" among them. All other fields came by `extra=`."""

BLANK: Final = vars(logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO"}))
"""Fields of an empty record of level INFO."""

# BLANK has the id of gunicorn's first process, and a worker has its own
os.register_at_fork(after_in_child=lambda: BLANK.update(process=os.getpid()))

encode: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode


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
                "class": f"{__name__}.LineHandler",
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


def capture(form: str, lines: int) -> None:
    """Never wait again for the readers of stdout and stderr, unless tests capture these.

    Args:
        form: `json` or `text`.
        lines: Lines a second that are no warnings, for all processes together.
    """
    if outputs or sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        return
    formatter = make_formatter(form)
    shared = Shared(lines)
    output = Output(1, shared, lambda counts: formatter.format(report(counts)))
    outputs.append(output)
    sys.stdout = printed(output, 1, important=False)
    sys.stderr = printed(output, 2, important=True)
    os.register_at_fork(before=shared.fork, after_in_child=shared.forked)
    os.register_at_fork(after_in_child=output.forked)
    atexit.register(output.end)


def flush() -> None:
    """Write the waiting lines, before this process ends or becomes another one."""
    for output in outputs:
        output.flush(EXIT_TIMEOUT)


outputs: "list[Output]" = []
"""Output of this process. There is none before capture()."""


def make_formatter(form: str) -> logging.Formatter:
    return JsonFormatter() if form == "json" else TextFormatter()


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


class JsonFormatter(logging.Formatter):
    """Formatter that writes one JSON object a record, with the request's id and extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        entry: dict[str, Any] = {
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "time": moment.isoformat(timespec="milliseconds"),
            "logger": record.name,
        }
        if identifier := request_id.get():
            entry["request_id"] = identifier
        entry |= {key: value for key, value in vars(record).items() if key not in STANDARD_FIELDS}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return encode(entry)


class TextFormatter(logging.Formatter):
    """Formatter that writes a line for a terminal, with the request's id shortened."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        identifier = request_id.get()
        return f"{line} [{identifier[:8]}]" if identifier else line


class LineHandler(logging.StreamHandler[TextIO]):
    """Handler that passes lines to the output thread, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if not outputs:
            super().emit(record)
            return
        try:
            if type(record) is RequestRecord:
                outputs[0].put_request(record, self.format)
            else:
                line = f"{self.format(record)}\n".encode(errors="backslashreplace")
                outputs[0].put_line(line, important=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)


class Lock:
    """Lock among the threads of all processes. The kernel releases it if a process is killed.

    The lock on the file belongs to a whole process, so its threads need another lock.

    Args:
        file: File that all processes have inherited.
    """

    def __init__(self, file: int | IO[bytes]) -> None:
        self.file = file
        self.threads = threading.RLock()

    def __enter__(self) -> None:
        self.threads.acquire()
        fcntl.lockf(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self.file, fcntl.LOCK_UN)
        self.threads.release()


class Window:
    """Times of the last lines, so that no second has more than a maximum number of lines.

    Args:
        cells: Times of the lines, and then their number so far. An unused cell is 0.
    """

    def __init__(self, cells: "memoryview[float]") -> None:
        self.cells = cells
        self.lines = len(cells) - 1

    @property
    def taken(self) -> int:
        return int(self.cells[self.lines])

    def take(self, now: float, *, leave: int = 0) -> bool:
        """Note one line and return True, if the window has room for it and `leave` more lines."""
        if self.is_full(now, leave):
            return False
        self.note(now)
        return True

    def note(self, now: float) -> None:
        """Note one line, also if there is no room. One caller at a time may do this."""
        if not self.lines:
            return
        taken = self.taken
        # The number comes first, or who reads in between would take this line's cell for the
        # oldest one's and see no room
        self.cells[self.lines] = taken + 1
        self.cells[taken % self.lines] = now

    def is_full(self, now: float, leave: int) -> bool:
        """Return whether there is no room, also while another process takes some."""
        while True:
            taken = self.taken
            full = self.lines <= leave or now - self.cells[(taken + leave) % self.lines] < SPAN
            if not full or taken == self.taken:
                return full


class Shared:
    """State that the processes of one container share about their lines.

    Each process counts in a slot of its own. The memory is made before the workers are forked, and
    outlives all of them, so no count is lost.

    Args:
        lines: Lines a second that are no warnings, including the one that reports the rest.
    """

    def __init__(self, lines: int) -> None:
        sizes = (lines + 1, IMPORTANT_LINES + 1)
        ends = list(accumulate(sizes, initial=2))
        memory = mmap.mmap(-1, 8 * (ends[-1] + WIDTH * (SLOTS + 1)))
        cells = memoryview(memory).cast("d")
        self.told_at, self.last_slot = cells[:1], cells[1:2]
        self.usual, self.important = (Window(cells[start:end]) for start, end in pairwise(ends))
        counts = cells[ends[-1] :].cast("B").cast("Q")
        self.counts, self.told = counts[:-WIDTH], counts[-WIDTH:]
        self.slot = self.forks = 0
        if sys.platform == "linux":
            file: int | IO[bytes] = os.memfd_create("log")
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115, it is open as long as the process
        self.writing = Lock(file)
        """Lock on the windows and on the descriptors, where a long line takes several writes."""

    def fork(self) -> None:
        """Choose the slot of the next process. The first slot is this process's own."""
        self.forks += 1

    def forked(self) -> None:
        self.writing.threads = threading.RLock()  # The first process may have held it at the fork
        self.slot = 1 + self.forks % (SLOTS - 1)
        self.last_slot[0] = max(self.last_slot[0], self.slot)

    def count(self, *places: int) -> None:
        for place in places:
            self.counts[self.slot * WIDTH + place] += 1

    def untold(self) -> list[int]:
        """Return what all processes have counted since the last report."""
        slots = range(int(self.last_slot[0]) + 1)
        rows = [self.counts[slot * WIDTH : (slot + 1) * WIDTH].tolist() for slot in slots]
        counts = map(sum, zip(*rows, strict=True))
        return [number - told for number, told in zip(counts, self.told.tolist(), strict=True)]

    def note_told(self, counts: list[int]) -> None:
        for place, number in enumerate(counts):
            self.told[place] += number


def report(counts: list[int]) -> logging.LogRecord:
    """Return a record that reports what was counted instead of written."""
    statuses, durations = counts[STATUS:DURATION], counts[DURATION:]
    fields: dict[str, Any] = {
        "requests": sum(statuses),
        "other_lines": counts[LINES],
        "warnings": counts[WARNINGS],
        "dropped": counts[LOST],
    }
    fields = {name: number for name, number in fields.items() if number}
    told = ", ".join(f"{name} {number}" for name, number in fields.items())
    if "requests" in fields:
        fields["statuses"] = {status: number for status, number in enumerate(statuses) if number}
        p50, p99 = percentile(durations, 0.5), percentile(durations, 0.99)
        fields |= {"p50_ms": p50, "p99_ms": p99}
        told += f" (p50 {p50} ms, p99 {p99} ms)"
    missed = counts[WARNINGS] or counts[LOST]
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


def bucket(milliseconds: float) -> int:
    return min(BUCKETS - 1, max(0, int(16 * math.log2(max(milliseconds, 0.01) / 0.01))))


def percentile(durations: list[int], share: float) -> float:
    """Return the upper end, in milliseconds, of the class that reaches this share of durations."""
    reached = accumulate(durations)
    wanted = share * sum(durations)
    number = next(number for number, many in enumerate(reached) if many >= wanted)
    return float(f"{0.01 * 2 ** ((number + 1) / 16):.3g}")


class Output:
    """Queue of lines for stdout and stderr, with the thread that writes them.

    Args:
        descriptor: File descriptor of the log. It stays blocking, because others share it.
        shared: Lines and counts of all processes.
        tell: Function that makes a line of the counts.
    """

    def __init__(self, descriptor: int, shared: Shared, tell: Callable[[list[int]], str]) -> None:
        self.descriptor = descriptor
        self.shared = shared
        self.tell = tell
        self.left = min(LEFT, shared.usual.lines // 5)
        self.owner = os.getpid()
        self.torn: set[int] = set()
        """File descriptors whose last write has ended within a line."""
        self.forked()

    def forked(self) -> None:
        """Begin anew in a forked process. The waiting lines are left to its parent."""
        self.lock = threading.RLock()
        self.lines: deque[tuple[int, bytes, Window, int]] = deque()
        self.size = 0
        self.accepted = {
            window: Window(memoryview(array("d", bytes(window.cells.nbytes))))
            for window in (self.shared.usual, self.shared.important)
        }
        """Lines that this process has accepted for each window of all processes."""
        self.thread: threading.Thread | None = None
        self.wake = threading.Event()
        self.hurry = threading.Event()
        self.ending = False
        self.ended = threading.Event()
        self.counted_at = 0.0
        """Time since which a count waits to be reported, or 0."""

    def put_request(self, record: RequestRecord, line: Callable[[logging.LogRecord], str]) -> None:
        """Write a request's line, or count it if there is no room."""
        if self.size < ROOM and self.has_room(self.shared.usual, self.left):
            text = f"{line(record)}\n".encode(errors="backslashreplace")
            self.put(self.descriptor, text, self.shared.usual, self.left)
        else:
            known = vars(record)
            duration = bucket(known["duration_ms"])
            self.count(STATUS + min(known["status"], 599), DURATION + duration)

    def put_line(self, line: bytes, *, important: bool, descriptor: int | None = None) -> None:
        """Write another line, or count it if there is no room."""
        window, leave = (self.shared.important, 0) if important else (self.shared.usual, 1)
        if self.size >= ROOM * (1 + important):
            self.count(LOST)
        elif self.has_room(window, leave):
            self.put(descriptor or self.descriptor, line, window, leave, hurry=important)
        else:
            self.count(WARNINGS if important else LINES)

    def has_room(self, window: Window, leave: int) -> bool:
        """Return whether the line may be written, and note it if it may.

        A lock among the processes would cost each request a change of threads. So a process sees
        what the others have written, and what they still have to write only makes it wait.
        """
        now = time.monotonic()
        with self.lock:
            return not window.is_full(now, leave) and self.accepted[window].take(now, leave=leave)

    def put(
        self, descriptor: int, line: bytes, window: Window, leave: int, *, hurry: bool = False
    ) -> None:
        with self.lock:
            self.lines.append((descriptor, line, window, leave))
            self.size += len(line)
        self.wake_up(hurry=hurry)

    def count(self, *places: int) -> None:
        with self.lock:
            self.shared.count(*places)
        if not self.counted_at:
            self.counted_at = time.monotonic()
            self.wake_up()

    def wake_up(self, *, hurry: bool = False) -> None:
        if self.thread is None:
            with self.lock:
                if self.thread is None:
                    self.thread = threading.Thread(target=self.run, name="output", daemon=True)
                    self.thread.start()
        if hurry:
            self.hurry.set()
        if not self.wake.is_set():
            self.wake.set()

    def run(self) -> None:
        """Write the lines that come, as long as the process runs."""
        while True:
            self.wake.wait(TELL_EVERY / 10 if self.counted_at else None)
            self.hurry.wait(LINGER)
            self.hurry.clear()
            self.wake.clear()
            self.write_all()
            self.tell_counts()
            if self.ending:
                self.ended.set()

    def write_all(self) -> None:
        while self.lines:
            descriptor = self.lines[0][0]
            with self.shared.writing:
                lines = self.next_lines(descriptor)
                written = self.write(descriptor, b"".join(lines))
            if not lines:
                time.sleep(LINGER / 5)
            with self.lock:
                self.size -= sum(map(len, lines))
            if not written:
                self.count(*[LOST] * len(lines))

    def next_lines(self, descriptor: int) -> list[bytes]:
        """Take one piece of lines. This second must have room for them, except at the end."""
        lines: list[bytes] = []
        size = 0
        while self.lines and self.lines[0][0] == descriptor:
            _, line, window, leave = self.lines[0]
            size += len(line)
            if lines and size > PIECE:
                break
            now = time.monotonic()
            if self.ending:
                window.note(now)
            elif not window.take(now, leave=leave):
                break
            self.lines.popleft()
            lines.append(line)
        return lines

    def tell_counts(self) -> None:
        """Write what all processes have counted, in one line a second.

        The first process reports the rest when it ends.
        """
        shared, now = self.shared, time.monotonic()
        last = self.ending and os.getpid() == self.owner
        if not last and (not self.counted_at or now - self.counted_at < TELL_EVERY):
            return
        with shared.writing:
            if not last and now - shared.told_at[0] < TELL_EVERY:
                return  # Another process was faster
            self.counted_at = 0.0
            counts = shared.untold()
            if not any(counts):
                return
            shared.told_at[0] = now
            shared.usual.note(now)
            if self.write(self.descriptor, f"{self.tell(counts)}\n".encode()):
                shared.note_told(counts)
            else:
                self.counted_at = now

    def write(self, descriptor: int, lines: bytes) -> bool:
        """Write all lines, however long that takes, and return whether that was possible."""
        rest = memoryview(b"\n" + lines if descriptor in self.torn else lines)
        begun = False
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
                begun = True
            except BlockingIOError:  # Somebody else has made it non-blocking
                select.select([], [descriptor], [])
            except OSError:
                if begun:
                    self.torn.add(descriptor)
                return False
        self.torn.discard(descriptor)
        return True

    def flush(self, timeout: float) -> None:
        """Wait until every line is written, but no longer than the timeout in seconds."""
        deadline = time.monotonic() + timeout
        while self.size and time.monotonic() < deadline:
            self.hurry.set()
            time.sleep(0.001)

    def end(self) -> None:
        """Write the last lines of this process, unless nobody reads them."""
        self.ending = True
        if self.thread is None and os.getpid() != self.owner:
            return
        with suppress(RuntimeError):  # It is too late for a thread
            self.wake_up(hurry=True)
            for _ in range(5):
                left = self.size
                if self.ended.wait(EXIT_TIMEOUT) or self.size == left:
                    break
        self.count(*[LOST] * len(self.lines))


class Printed(io.RawIOBase):
    """Raw stream below sys.stdout or sys.stderr, which passes on printed text line by line."""

    def __init__(self, output: Output, descriptor: int, *, important: bool) -> None:
        super().__init__()
        self.output, self.descriptor, self.important = output, descriptor, important
        self.rest = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def write(self, data: "ReadableBuffer") -> int:
        """Pass on the complete lines. A line that does not end is cut."""
        *lines, self.rest = (self.rest + bytes(data)).split(b"\n")
        if len(self.rest) > ROOM:
            lines, self.rest = [*lines, self.rest], b""
        for line in lines:
            self.output.put_line(line + b"\n", important=self.important, descriptor=self.descriptor)
        return memoryview(data).nbytes


def printed(output: Output, descriptor: int, *, important: bool) -> TextIO:
    """Return a stream to put in the place of sys.stdout or sys.stderr."""
    stream = io.BufferedWriter(Printed(output, descriptor, important=important))
    return io.TextIOWrapper(
        stream, encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
