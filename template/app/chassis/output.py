# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Output to stdout and stderr that never waits for a reader, and has a limited rate.

A write to a pipe that nobody reads never returns, so a separate thread makes all writes. Railway
drops the lines of a replica beyond 500 a second (docs.railway.com/observability/logs), warnings
among them. So less than that is written here. This module imports nothing beyond the standard
library, because gunicorn's first process uses it too.
"""

import atexit
import fcntl
import io
import math
import mmap
import os
import select
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

IMPORTANT_LINES: Final = 100
"""Maximum number of warnings and errors a second, in addition to the other lines."""

ROOM: Final = 128 * 1024
"""Bytes that may wait to be written. Warnings and errors may use as many again."""

PIECE: Final = 4096
"""Bytes that a pipe keeps together (PIPE_BUF, pipe(7)), even if others write to it."""

LEFT: Final = 10
"""Lines a second that requests leave free for other lines."""

LINGER: Final = 0.05
"""Seconds in which lines gather, so that a busy worker does not wake a thread for each."""

EXIT_TIMEOUT: Final = 1.0
"""Seconds after which a process ends if it can write none of its last lines."""

SPAN: Final = 1.05
"""Length of a window in seconds. A line is read up to 50 ms after it was noted."""

TRIES: Final = 50
"""Number of attempts to lock a window, a tenth of a millisecond apart."""

TELL_EVERY: Final = 1.0
"""Seconds between two lines that report what was counted."""

SLOTS: Final = 32
"""Number of processes that count at once, which is twice the maximum number of workers."""

BUCKETS: Final = 512
"""Number of duration classes, sixteen for each doubling from a hundredth of a millisecond on."""

LINES, WARNINGS, LOST, STATUS = 0, 1, 2, 3
"""Places of a process's counts of other lines, warnings, unwritten lines, and answers."""
DURATION: Final = STATUS + 600
WIDTH: Final = DURATION + BUCKETS


class Window:
    """Times of the last lines, so that no second has more than a maximum number of lines.

    Args:
        cells: Times of the lines, and then their number so far. An unused cell is 0.
        file: File of all processes, for their lock.
        place: Byte of the file that is locked for this window.
    """

    def __init__(self, cells: "memoryview[float]", file: int, place: int) -> None:
        self.cells = cells
        self.lines = len(cells) - 1
        self.file, self.place = file, place
        self.lock = threading.Lock()

    def take(self, now: float, *, leave: int = 0) -> bool:
        """Note one line and return True, if the window has room for it and `leave` more lines."""
        if self.lines <= leave:
            return False
        with self.lock:
            held = self.hold()
            try:
                return self.take_alone(now, leave)
            finally:
                if held:
                    fcntl.lockf(self.file, fcntl.LOCK_UN, 1, self.place)

    def hold(self) -> bool:
        """Lock the cells against other processes, and return whether that was possible.

        The wait is short, in case a process has stopped while it holds the lock. One line too many
        is better than none. The kernel would take a blocking lock for a deadlock when another
        thread waits for the lock on writing.
        """
        for _ in range(TRIES):
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.place)
            except (BlockingIOError, PermissionError):
                time.sleep(0.0001)
            else:
                return True
        return False

    def take_alone(self, now: float, leave: int) -> bool:
        cells, taken = self.cells, int(self.cells[self.lines])
        if now - cells[(taken + leave) % self.lines] < SPAN:
            return False
        cells[taken % self.lines] = now
        cells[self.lines] = taken + 1
        return True


class Shared:
    """State that the processes of one container share about their lines.

    Each process counts in a slot of its own. The memory is made before the workers are forked, and
    outlives all of them, so no count is lost.

    Args:
        lines: Lines a second that are no warnings, including the one that reports the rest.
        file: File of another process's state, to share it. By default a new one is made.
    """

    def __init__(self, lines: int, file: int | None = None) -> None:
        sizes = (lines + 1, IMPORTANT_LINES + 1, lines + IMPORTANT_LINES + 1, 2)
        times = 8 * sum(sizes)
        self.file = temporary_file() if file is None else file
        os.ftruncate(self.file, times + 8 * WIDTH * (SLOTS + 1))
        memory = memoryview(mmap.mmap(self.file, 0))
        cells = memory[:times].cast("d")
        ends = list(accumulate(sizes))
        parts = [cells[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        self.windows = [Window(part, self.file, 1 + index) for index, part in enumerate(parts[:3])]
        self.usual, self.important, self.written = self.windows
        self.told_at = parts[3][:1]
        self.last_slot = parts[3][1:]
        counts = memory[times:].cast("Q")
        self.counts, self.told = counts[:-WIDTH], counts[-WIDTH:]
        self.writing = threading.Lock()
        self.slot = 0
        self.forks = 0

    def fork(self) -> None:
        """Choose the slot of the next process. The first slot is this process's own."""
        self.forks += 1

    def forked(self) -> None:
        # The first process may have held these locks at the fork
        self.writing = threading.Lock()
        for window in self.windows:
            window.lock = threading.Lock()
        self.slot = 1 + self.forks % (SLOTS - 1)
        self.last_slot[0] = max(self.last_slot[0], self.slot)

    def count(self, what: int) -> None:
        self.counts[self.slot * WIDTH + what] += 1

    def untold(self) -> list[int]:
        """Return what all processes have counted since the last report."""
        slots = range(int(self.last_slot[0]) + 1)
        rows = [self.counts[slot * WIDTH : (slot + 1) * WIDTH].tolist() for slot in slots]
        counts = map(sum, zip(*rows, strict=True))
        return [number - told for number, told in zip(counts, self.told.tolist(), strict=True)]

    def note_told(self, counts: list[int]) -> None:
        for index, number in enumerate(counts):
            if number:
                self.told[index] += number

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep everybody else from writing, because a long line is written in several parts.

        The lock on the file belongs to the whole process, so its threads need another lock. The
        kernel releases the file's lock if the process is killed.
        """
        with self.writing:
            fcntl.lockf(self.file, fcntl.LOCK_EX, 1)
            try:
                yield
            finally:
                fcntl.lockf(self.file, fcntl.LOCK_UN, 1)


def temporary_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("log")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@dataclass
class Tally:
    """Counts of requests and lines that were not written."""

    statuses: dict[int, int]
    p50_ms: float
    p99_ms: float
    lines: int
    warnings: int
    lost: int


def tally(counts: list[int]) -> Tally:
    durations = counts[DURATION:]
    return Tally(
        {status: number for status, number in enumerate(counts[STATUS:DURATION]) if number},
        percentile(durations, 0.5),
        percentile(durations, 0.99),
        *counts[:STATUS],
    )


def bucket(milliseconds: float) -> int:
    return min(BUCKETS - 1, max(0, int(16 * math.log2(max(milliseconds, 0.01) / 0.01))))


def percentile(durations: list[int], share: float) -> float:
    """Return the upper end, in milliseconds, of the class that reaches this share of durations."""
    wanted = share * sum(durations)
    reached = 0
    for number, many in enumerate(durations):
        reached += many
        if many and reached >= wanted:
            return float(f"{0.01 * 2 ** ((number + 1) / 16):.3g}")
    return 0.0


class Output:
    """Queue of lines for a file descriptor, with the thread that writes them.

    Args:
        descriptor: File descriptor of the lines. It stays blocking, because others share it.
        shared: Lines and counts of all processes.
        tell: Function that makes a line of the counts, or None if another output reports them.
    """

    def __init__(
        self, descriptor: int, shared: Shared, tell: Callable[[Tally], str] | None = None
    ) -> None:
        self.descriptor = descriptor
        self.shared = shared
        self.tell = tell
        self.left = min(LEFT, shared.usual.lines // 5)
        self.owner = os.getpid()
        self.torn = False
        """True after a write that has ended within a line."""
        self.forked()

    def forked(self) -> None:
        """Begin anew in a forked process. The waiting lines are left to its parent."""
        self.lock = threading.RLock()
        self.lines: deque[bytes] = deque()
        self.size = 0
        self.thread: threading.Thread | None = None
        self.wake = threading.Event()
        self.hurry = threading.Event()
        self.ending = False
        self.ended = threading.Event()
        self.counted_at = 0.0
        """Time since which a count waits to be reported, or 0."""

    def put_request(self, status: int, milliseconds: float, line: Callable[[], str]) -> None:
        """Write a request's line, or count it if there is no room."""
        if self.size < ROOM and self.shared.usual.take(time.monotonic(), leave=self.left):
            self.put(line().encode(errors="backslashreplace") + b"\n")
        else:
            self.count(STATUS + min(status, 599), DURATION + bucket(milliseconds))

    def put_line(self, line: bytes, *, important: bool) -> None:
        """Write another line, or count it if there is no room."""
        window = self.shared.important if important else self.shared.usual
        if self.size >= ROOM * (1 + important):
            self.count(LOST)
        elif window.take(time.monotonic(), leave=not important):
            self.put(line, hurry=important)
        else:
            self.count(WARNINGS if important else LINES)

    def put(self, line: bytes, *, hurry: bool = False) -> None:
        with self.lock:
            self.lines.append(line)
            self.size += len(line)
        self.wake_up(hurry=hurry)

    def count(self, *what: int) -> None:
        with self.lock:
            for number in what:
                self.shared.count(number)
            if self.counted_at:
                return
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
            self.wake.wait(TELL_EVERY / 10 if self.counted_at and self.tell else None)
            self.hurry.wait(LINGER)
            self.hurry.clear()
            self.wake.clear()
            self.write_all()
            if self.tell:
                self.tell_counts(self.tell)
            if self.ending:
                self.ended.set()

    def write_all(self) -> None:
        while self.lines:
            with self.shared.alone():
                lines = self.next_lines()
                written = self.write(b"".join(lines))
            if not lines:
                time.sleep(LINGER / 5)
            with self.lock:
                self.size -= sum(map(len, lines))
            if not written:
                self.count(*[LOST] * len(lines))

    def next_lines(self) -> list[bytes]:
        """Take one piece of lines. This second must have room for them, except at the end."""
        lines: list[bytes] = []
        size = 0
        while self.lines and (not lines or size + len(self.lines[0]) <= PIECE):
            if not self.ending and not self.shared.written.take(time.monotonic()):
                break
            lines.append(self.lines.popleft())
            size += len(lines[-1])
        return lines

    def tell_counts(self, tell: Callable[[Tally], str]) -> None:
        """Write what all processes have counted, in one line a second.

        The first process reports the rest when it ends.
        """
        shared, now = self.shared, time.monotonic()
        last = self.ending and os.getpid() == self.owner
        if not last and (not self.counted_at or now - self.counted_at < TELL_EVERY):
            return
        with shared.alone():
            if not last and now - shared.told_at[0] < TELL_EVERY:
                return  # Another process was faster
            self.counted_at = 0.0
            counts = shared.untold()
            if not any(counts):
                return
            shared.told_at[0] = now
            shared.usual.take(now), shared.written.take(now)
            if self.write(tell(tally(counts)).encode() + b"\n"):
                shared.note_told(counts)
            else:
                self.counted_at = now

    def write(self, lines: bytes) -> bool:
        """Write all lines, however long that takes, and return whether that was possible."""
        rest = memoryview(b"\n" + lines if self.torn else lines)
        begun = False
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
                begun = True
            except BlockingIOError:  # Somebody else has made it non-blocking
                select.select([], [self.descriptor], [])
            except OSError:
                self.torn = self.torn or begun
                return False
        self.torn = False
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


class Lines(io.RawIOBase):
    """Raw stream that passes on printed text line by line."""

    def __init__(self, output: Output, *, important: bool) -> None:
        super().__init__()
        self.output = output
        self.important = important
        self.rest = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.output.descriptor

    def write(self, data: "ReadableBuffer") -> int:
        """Pass on the complete lines. A line that does not end is cut."""
        text = self.rest + bytes(data)
        *lines, self.rest = text.split(b"\n")
        if len(self.rest) > ROOM:
            lines, self.rest = [*lines, self.rest], b""
        for line in lines:
            self.output.put_line(line + b"\n", important=self.important)
        return memoryview(data).nbytes


class Printed(io.TextIOWrapper):
    """Stream in the place of sys.stdout or sys.stderr."""

    def __init__(self, output: Output, *, important: bool) -> None:
        lines = Lines(output, important=important)
        super().__init__(
            io.BufferedWriter(lines),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        self.output = output


outputs: list[Output] = []
"""Outputs of this process, which are none before capture()."""


def capture(lines: int, tell: Callable[[Tally], str], file: int | None = None) -> None:
    """Never wait again for the readers of stdout and stderr, unless tests capture these.

    Args:
        lines: Lines a second that are no warnings.
        tell: Function that makes a line of what was counted instead of written.
        file: File of another process's lines and counts, to share them.
    """
    if outputs or sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        return
    shared = Shared(lines, file)
    if file is not None:
        shared.fork()
        shared.forked()
    outputs[:] = Output(1, shared, tell), Output(2, shared)
    sys.stdout = Printed(outputs[0], important=False)
    sys.stderr = Printed(outputs[1], important=True)
    os.register_at_fork(before=shared.fork, after_in_child=shared.forked)
    for output in outputs:
        os.register_at_fork(after_in_child=output.forked)
        atexit.register(output.end)


def flush() -> None:
    """Write the waiting lines, before this process ends or becomes another one."""
    for output in outputs:
        output.flush(EXIT_TIMEOUT)
