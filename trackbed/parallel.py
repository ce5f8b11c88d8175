"""Many jobs at once, and a bar that says how far they are."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trackbed import bounded
from trackbed.errors import ServiceError, unexpected

Job = TypeVar("Job")
Result = TypeVar("Result")

SECONDS = 600
CPU_SECONDS = 60
"""Seconds of processor time that a process takes for one service; those it starts have theirs."""
MEMORY = 2048 * bounded.MEGABYTE
"""Bytes that each process may allocate."""
NOTICE = 3.0
"""Seconds that a process has to end those that it started, before it is killed."""


@dataclass
class Worker:
    """A process that does one job after the other."""

    process: Any
    connection: Connection
    number: int
    until: float


def run(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    processes: int,
    label: str,
    seconds: float = SECONDS,
) -> list[Result | ServiceError]:
    """The results in the order of the jobs; an error where there is none.

    Args:
        function: what is done with each.
        jobs: they and the results are pickled.
        processes: how many work at once.
        label: stands beside the bar.
        seconds: time for each job, after which its process is killed.
    """
    results: dict[int, Result | ServiceError] = {}
    waiting = deque(range(len(jobs)))
    working: list[Worker] = []
    idle: list[Worker] = []
    with bar(label, len(jobs)) as advance:
        try:
            while waiting or working:
                while waiting and len(working) < max(1, processes):
                    worker = idle.pop() if idle else start(function)
                    working.append(worker)
                    give(worker, waiting.popleft(), jobs, seconds)
                for worker in finished(working):
                    working.remove(worker)
                    results[worker.number], alive = collect(worker)
                    advance()
                    if alive:
                        idle.append(worker)
        finally:
            for worker in (*working, *idle):
                with suppress(OSError):
                    worker.connection.close()
            end(*working, *idle)
    return [results[number] for number in range(len(jobs))]


def start(function: Callable[[Any], Any]) -> Worker:
    """Start a process, which has not begun with anything."""
    here, there = context().Pipe()
    process = context().Process(target=serve, args=(function, there), daemon=False)
    process.start()
    there.close()
    return Worker(process, here, -1, 0)


def give(worker: Worker, number: int, jobs: Sequence[Any], seconds: float) -> None:
    worker.number, worker.until = number, monotonic() + seconds
    with suppress(OSError):  # it is dead, which is seen soon
        worker.connection.send(jobs[number])


def finished(working: Sequence[Worker]) -> list[Worker]:
    """Wait for those that have answered, have died or have had their time."""
    until = min(worker.until for worker in working)
    ready = wait([one.connection for one in working], timeout=max(0.0, until - monotonic()))
    return [one for one in working if one.connection in ready or monotonic() >= one.until]


def collect(worker: Worker) -> tuple[Any, bool]:
    """What a process has found, and whether it can go on."""
    if not worker.connection.poll():
        end(worker)
        return ServiceError("it took too long, and was ended"), False
    try:
        return worker.connection.recv(), True
    except Exception:  # the process died, or sent what cannot be read
        end(worker)
        code = worker.process.exitcode
        if code == -getattr(signal, "SIGXCPU", 0):
            return ServiceError(f"it took more than {CPU_SECONDS} s of processor time"), False
        return ServiceError("its process was killed"), False


def end(*workers: Worker) -> None:
    """End processes and all that they have started."""
    for worker in workers:
        with suppress(OSError, ValueError):
            worker.process.terminate()
    until = monotonic() + NOTICE
    for worker in workers:
        worker.process.join(max(0.0, until - monotonic()))
        bounded.kill(worker.process.pid)
        worker.process.join()


def serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """Do the jobs that come, until there are no more or who sends them is gone."""
    if os.name == "posix":
        os.setsid()  # signals of the terminal are for the command, which ends this process
    bounded.adopt()
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what a template's tasks print is no part of a report
    incoming, given = context().Pipe(duplex=False)
    Thread(target=receive, args=(connection, given), daemon=True).start()
    while True:
        job = incoming.recv()
        try:
            with bounded.limited(memory=MEMORY, cpu=CPU_SECONDS):
                result = function(job)
        except MemoryError:
            result = ServiceError(f"it takes more than {MEMORY // bounded.MEGABYTE} MB")
        except Exception as error:  # one service never stops the others
            result = unexpected(error)
        connection.send(result)


def receive(connection: Connection, given: Connection) -> None:
    """Hand jobs over, and end this process with the one that sends them, however that ended."""
    try:
        while True:
            given.send(connection.recv())
    except Exception:  # there is nobody any more
        leave()


def leave(*_: object) -> None:
    """End this process, and what it has started itself or by way of Copier."""
    bounded.stop()
    bounded.kill(os.getpid())
    os._exit(1)


def context() -> Any:
    """Processes that start with Copier imported, where the system can do that."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["trackbed.render"])
    return forkserver


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error; none where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)
