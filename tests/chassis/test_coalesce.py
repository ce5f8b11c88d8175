"""One run serves all who asked before it began, and nobody who asked later."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.chassis.health import Coalesced


class Runs:
    """Counts its runs, each of which waits until it is let go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.go_on.wait()
        return number


async def started(*asked: Callable[[], Awaitable[int]]) -> list[asyncio.Task[int]]:
    async def ask(function: Callable[[], Awaitable[int]]) -> int:
        return await function()

    tasks = [asyncio.create_task(ask(function)) for function in asked]
    await asyncio.sleep(0.01)
    return tasks


def test_who_asks_during_a_run_gets_the_next_one() -> None:
    async def ask() -> list[int]:
        runs = Runs()
        coalesced = Coalesced(runs)
        first = await started(*[coalesced] * 3)
        later = await started(*[coalesced] * 3)
        assert runs.begun == 1
        runs.go_on.set()
        return [await task for task in first + later] + [await coalesced()]

    assert asyncio.run(ask()) == [1, 1, 1, 2, 2, 2, 3]


def test_who_goes_away_takes_nothing_from_the_others() -> None:
    async def ask() -> list[int]:
        runs = Runs()
        coalesced = Coalesced(runs)
        first, second = await started(coalesced, coalesced)
        first.cancel()
        await asyncio.sleep(0.01)
        runs.go_on.set()
        return [await second, await coalesced()]

    assert asyncio.run(ask()) == [1, 2]


def test_an_error_reaches_all_and_ends_with_its_run() -> None:
    attempts: list[int] = []

    async def fail_once() -> int:
        attempts.append(1)
        await asyncio.sleep(0)
        if len(attempts) == 1:
            raise ZeroDivisionError
        return len(attempts)

    async def ask() -> int:
        coalesced = Coalesced(fail_once)
        for task in await started(coalesced, coalesced):
            with pytest.raises(ZeroDivisionError):
                await task
        return await coalesced()

    assert asyncio.run(ask()) == 2


def test_an_end_of_the_loop_ends_those_who_wait() -> None:
    async def ask() -> None:
        coalesced = Coalesced(Runs())
        (waiting,) = await started(coalesced)
        assert coalesced.current is not None
        coalesced.current.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(asyncio.wait_for(ask(), 5))
