"""Programs with bounded time, memory and output, which are gone afterwards."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread, current_thread, main_thread
from time import monotonic
from typing import IO

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MEGABYTE = 2**20
GRACE = 1.0
"""Seconds to wait for the output of processes that a program has left behind."""

SET_CHILD_SUBREAPER = 36
"""Option of prctl (https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html)."""

running: set[int] = set()
lock = Lock()
held = False
"""Whether a signal waits, because what it would interrupt could not be undone."""
waiting: list[tuple[int, Callable[[int], object]]] = []
"""Signals that came meanwhile, with what they do."""


class Exceeded(Exception):
    """Error for a program that took more time than it had, or printed more than it may."""


@dataclass(frozen=True)
class Done:
    """Result of a program that ended."""

    code: int
    out: bytes
    err: bytes


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    seconds: float,
    output: int,
    merged: bool = False,
    tail: bool = False,
) -> Done:
    """Run a program in a process group of its own, and leave nothing of the group.

    Args:
        command: the program and its arguments.
        cwd: the directory that it is started in.
        env: all of its environment.
        stdin: the file that it reads.
        seconds: time until it is killed.
        output: bytes of each of its two outputs.
        merged: take what it prints as errors into the same output.
        tail: keep the last bytes of a longer output, instead of killing the program.

    Raises:
        Exceeded: it was killed.
        OSError: it cannot be started.
    """
    process = None
    too_much: list[bool] = []
    readers: list[tuple[Thread, IO[bytes]]] = []
    kept: list[bytearray] = []
    try:
        # Nothing would end a program that has been started and is not in `running` yet
        with signals_held(), open(stdin or os.devnull, "rb") as given:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merged else subprocess.PIPE,
                start_new_session=True,
            )
            with lock:
                running.add(process.pid)
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    kept.append(bytearray())
                    arguments = (process, pipe, kept[-1], output, tail, too_much)
                    reader = Thread(target=read, args=arguments, daemon=True)
                    reader.start()
                    readers.append((reader, pipe))
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Exceeded(f"took more than {seconds:g} s") from None
        until = monotonic() + GRACE
        for reader, _ in readers:
            reader.join(max(0.0, until - monotonic()))
        if too_much:
            raise Exceeded(f"printed more than {output // MEGABYTE} MB")
    finally:
        if process:
            kill(process.pid)
            process.wait()
            with lock:
                running.discard(process.pid)
        for reader, pipe in readers:
            reader.join(GRACE)
            if not reader.is_alive():
                pipe.close()
    return Done(code, bytes(kept[0]), bytes(kept[-1]) if not merged else b"")


def read(
    process: "subprocess.Popen[bytes]",
    pipe: IO[bytes],
    into: bytearray,
    limit: int,
    tail: bool,
    too_much: list[bool],
) -> None:
    while data := os.read(pipe.fileno(), 65536):
        into += data
        if len(into) <= limit:
            continue
        if tail:
            del into[:-limit]
        else:
            del into[limit:]
            too_much.append(True)
            kill(process.pid)
            return


def kill(group: int) -> None:
    """Kill a process group, if it is still there."""
    with suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(group, signal.SIGKILL)
        else:
            os.kill(group, signal.SIGTERM)


def on_signal(number: int, then: Callable[[int], object]) -> None:
    """Set what a signal does, now or when `signals_held` ends."""

    def receive(number: int, _: object) -> None:
        if held:
            waiting.append((number, then))
        else:
            then(number)

    signal.signal(number, receive)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals wait, in the thread that receives them."""
    global held
    if current_thread() is not main_thread():
        yield
        return
    before, held = held, True
    try:
        yield
    finally:
        held = before
        if waiting and not held:
            number, then = waiting[0]
            waiting.clear()  # The first one ends what runs here
            then(number)


def adopt() -> None:
    """Become the parent of orphans that child processes leave behind, if Linux can do that."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_children() -> None:
    """Kill the processes that others have left to this one, and those that they leave in turn."""
    for _ in range(1000):
        children = list(children_of(os.getpid()))
        if not children:
            return
        for child in children:
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def children_of(parent: int) -> Iterator[int]:
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            after = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
            if int(after.split()[1]) == parent:
                yield int(file.parent.name)


def stop() -> None:
    """Kill every program that runs."""
    for group in tuple(running):
        kill(group)


@contextmanager
def limited(*, memory: int | None = None, cpu: int | None = None) -> Iterator[None]:
    """Bound what this process and those that it starts may take, for a while.

    Args:
        memory: bytes that each may allocate. Files that are only read do not count.
        cpu: seconds of processor time that each may take from now on. None lifts an earlier bound.
    """
    if resource is None:
        yield
        return
    bounds = {resource.RLIMIT_CPU: cpu and cpu + int(used())}
    if memory:
        bounds[resource.RLIMIT_DATA] = memory
    before = {which: resource.getrlimit(which) for which in bounds}
    try:
        for which, bound in bounds.items():
            lower(which, bound)
        yield
    finally:
        for which, values in before.items():
            resource.setrlimit(which, values)


def lower(which: int, bound: int | None) -> None:
    """Set a soft limit, as far as the hard limit allows."""
    hard = resource.getrlimit(which)[1]
    wanted = resource.RLIM_INFINITY if bound is None else bound
    if hard != resource.RLIM_INFINITY and (bound is None or bound > hard):
        wanted = hard
    resource.setrlimit(which, (wanted, hard))


def used() -> float:
    """Return the processor time of this process in seconds."""
    taken = resource.getrusage(resource.RUSAGE_SELF)
    return taken.ru_utime + taken.ru_stime
