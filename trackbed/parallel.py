"""Many jobs at once, and a bar that says how far they are."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trackbed.errors import ServiceError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    processes: int,
    label: str,
) -> list[Result | ServiceError]:
    """The results in the order of the jobs; an error where there is none."""
    if not jobs:
        return []
    results: dict[int, Result | ServiceError] = {}
    with bar(label, len(jobs)) as advance:

        def collect(numbers: Sequence[int], pool: ProcessPoolExecutor) -> list[int]:
            """Returns those whose process died, or that waited when another's did."""
            broken = []
            futures = {pool.submit(function, jobs[number]): number for number in numbers}
            try:
                for future in as_completed(futures):
                    number = futures[future]
                    try:
                        results[number] = future.result()
                    except BrokenProcessPool:
                        broken.append(number)
                        continue
                    except Exception as error:  # one service never stops the others
                        problem = f"unexpected: {type(error).__name__}: {error}"
                        results[number] = ServiceError(problem)
                    advance()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return broken

        with start(min(processes, len(jobs))) as pool:
            broken = collect(range(len(jobs)), pool)
        for number in broken:  # one at a time, to see whose fault it is
            with start(1) as pool:
                if collect([number], pool):
                    results[number] = ServiceError("its process was killed")
                    advance()
    return [results[number] for number in range(len(jobs))]


def start(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max(1, processes), context(), initializer=speak_aside)


def speak_aside() -> None:
    """What a template's tasks print is no part of a report."""
    os.dup2(2, 1)


def context() -> multiprocessing.context.BaseContext:
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
