"""What the threads of the database promise to those who wait for them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import anyio.from_thread
import pytest
from sqlalchemy.orm import Session

from app.chassis import assembly
from app.chassis.database import Database
from app.settings import Settings

from .databases import make_database

PATIENCE = 10.0

Run = Callable[[Callable[[Session], Any]], Awaitable[Any]]

marked: ContextVar[str] = ContextVar("marked", default="")


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    make_database(settings)
    made = assembly.engine.open(settings)
    yield made
    made.dispose()


@pytest.fixture(params=["run_reading", "run_writing"])
def run(database: Database, request: pytest.FixtureRequest) -> Run:
    found: Run = getattr(database, request.param)
    return found


def in_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario()

    asyncio.run(bounded())


def test_who_stops_waiting_does_not_stop_the_work(run: Run) -> None:
    async def scenario() -> None:
        released, ended = threading.Event(), threading.Event()

        def work(_: Session) -> None:
            begun.set()
            released.wait(PATIENCE)
            ended.set()

        begun = threading.Event()
        task = asyncio.ensure_future(run(work))
        await asyncio.to_thread(begun.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        released.set()
        assert await asyncio.to_thread(ended.wait, PATIENCE)
        assert await run(lambda _: "next") == "next"

    in_loop(scenario)


@pytest.mark.parametrize("error", [ValueError, StopIteration, KeyboardInterrupt])
def test_an_error_is_raised_where_the_work_is_awaited(run: Run, error: type[BaseException]) -> None:
    def fail(_: Session) -> None:
        raise error

    async def scenario() -> None:
        expected = RuntimeError if error is StopIteration else error
        with pytest.raises(expected):
            await run(fail)
        assert await run(lambda _: 1) == 1

    in_loop(scenario)


def test_work_has_the_context_and_the_event_loop_of_who_waits(run: Run) -> None:
    async def scenario() -> None:
        marked.set("here")
        assert await run(lambda _: marked.get()) == "here"
        assert await run(lambda _: anyio.from_thread.run(asyncio.sleep, 0, "slept")) == "slept"

    in_loop(scenario)


def test_who_gives_up_a_turn_holds_up_nobody(database: Database) -> None:
    async def scenario() -> None:
        async def hold() -> None:
            async with database.writer.lend():
                pytest.fail("it was given up")

        async with database.writer.lend():
            waiting = asyncio.create_task(hold())
            await asyncio.sleep(0.01)
            waiting.cancel()
        assert await database.run_writing(lambda _: "next") == "next"

    in_loop(scenario)


def test_a_turn_that_is_given_up_as_it_comes_holds_up_nobody(database: Database) -> None:
    async def scenario() -> None:
        async def hold() -> None:
            async with database.writer.lend():
                await asyncio.sleep(0)

        for steps in range(12):
            task = asyncio.create_task(hold())
            for _ in range(steps):
                await asyncio.sleep(0.0005 if steps % 2 else 0)
            task.cancel()
            assert await database.run_writing(lambda _: "next") == "next"

    in_loop(scenario)


def test_works_in_one_event_loop_after_the_other(database: Database, run: Run) -> None:
    async def scenario() -> None:
        released = threading.Event()
        given_up = asyncio.ensure_future(run(lambda _: released.wait(0.1)))
        assert await asyncio.wait([given_up], timeout=0.01)
        given_up.cancel()
        assert await run(lambda _: "next") == "next"

    for _ in range(3):
        in_loop(scenario)
    database.dispose()
    in_loop(scenario)
