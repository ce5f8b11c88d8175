"""Processes that do many jobs at once, and a progress bar."""

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
"""Maximum seconds of processor time for one service. Child processes have their own limit."""
MEMORY = 2048 * bounded.MEGABYTE
"""Maximum bytes that each process allocates."""
NOTICE = 3.0
"""Grace period in seconds, in which a process ends its children before it is killed."""


@dataclass
class Worker:
    """Process that does one job after the other."""

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
    """Do the jobs, and return their results or errors in the order of the jobs.

    Args:
        function: the function that does a job.
        jobs: the jobs, which are pickled, as the results are.
        processes: the number of processes that work at once.
        label: the text beside the bar.
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
    """Start a process, which has no job yet."""
    here, there = context().Pipe()
    process = context().Process(target=serve, args=(function, there), daemon=False)
    process.start()
    there.close()
    return Worker(process, here, -1, 0)


def give(worker: Worker, number: int, jobs: Sequence[Any], seconds: float) -> None:
    worker.number, worker.until = number, monotonic() + seconds
    with suppress(OSError):  # If the process is dead, `collect` finds that out
        worker.connection.send(jobs[number])


def finished(working: Sequence[Worker]) -> list[Worker]:
    """Wait until processes have answered, died or used up their time, and return them."""
    until = min(worker.until for worker in working)
    ready = wait([one.connection for one in working], timeout=max(0.0, until - monotonic()))
    return [one for one in working if one.connection in ready or monotonic() >= one.until]


def collect(worker: Worker) -> tuple[Any, bool]:
    """Return the result of a process, and whether the process can go on."""
    if not worker.connection.poll():
        end(worker)
        return ServiceError("it took too long, and was ended"), False
    try:
        return worker.connection.recv(), True
    except Exception:  # The process died, or sent data that cannot be read
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
    """Do the jobs that come, until there are no more or their sender is gone."""
    if os.name == "posix":
        os.setsid()  # The terminal's signals are for the command, which ends this process
    bounded.adopt()
    bounded.on_signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # The output of a template's tasks is no part of a report
    incoming, given = context().Pipe(duplex=False)
    Thread(target=receive, args=(connection, given), daemon=True).start()
    while True:
        job = incoming.recv()
        try:
            with bounded.limited(memory=MEMORY, cpu=CPU_SECONDS):
                result = function(job)
        except MemoryError:
            result = ServiceError(f"it takes more than {MEMORY // bounded.MEGABYTE} MB")
        except Exception as error:  # One service never stops the others
            result = unexpected(error)
        connection.send(result)


def receive(connection: Connection, given: Connection) -> None:
    """Hand jobs over, and end this process if the one that sends them has ended in any way."""
    try:
        while True:
            given.send(connection.recv())
    except Exception:  # The sender is gone
        leave()


def leave(*_: object) -> None:
    """End this process, and all processes that it has started itself or through Copier."""
    bounded.stop()
    bounded.kill(os.getpid())
    os._exit(1)


def context() -> Any:
    """Return a context whose processes start with Copier imported, if the system can do that."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["trackbed.render"])
    return forkserver


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error, unless that is no terminal."""
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
