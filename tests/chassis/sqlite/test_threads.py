"""The threads of this engine: one that writes in order, and readers that help each other."""

import asyncio
import threading
import time
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.chassis import assembly
from app.chassis.database import Database, DatabaseBusyError
from app.chassis.sqlite import engines, readers, writer
from app.settings import Settings

from ..test_threads import PATIENCE, Run, in_loop
from .databases import make_database


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


async def stuck_until(released: threading.Event, run: Run, times: int = 1) -> list[Any]:
    """Calls that have begun, and wait in all threads until they are released."""
    begun = threading.Semaphore(0)

    def wait(_: Session) -> bool:
        begun.release()
        return released.wait(PATIENCE)

    calls = [asyncio.ensure_future(run(wait)) for _ in range(times)]
    for _ in calls:
        await asyncio.to_thread(begun.acquire, timeout=PATIENCE)
    return calls


def test_what_is_written_is_done_in_its_order_in_one_thread(database: Database) -> None:
    async def scenario() -> None:
        done: list[tuple[int, int]] = []

        def work(number: int, _: Session) -> str:
            done.append((number, threading.get_ident()))
            return threading.current_thread().name

        calls = (database.run_writing(partial(work, number)) for number in range(50))
        assert set(await asyncio.gather(*calls)) == {"database-writer"}
        assert [number for number, _ in done] == list(range(50))
        assert len({ident for _, ident in done}) == 1

    in_loop(scenario)


def test_readers_that_are_stuck_keep_nobody_else_waiting(database: Database) -> None:
    async def scenario() -> None:
        released = threading.Event()
        stuck = await stuck_until(released, database.run_reading, engines.READERS - 1)
        assert await database.run_reading(lambda _: "done") == "done"
        released.set()
        assert await asyncio.gather(*stuck) == [True] * len(stuck)

    in_loop(scenario)


@pytest.mark.parametrize("stuck_reads", [1, engines.READERS])
def test_a_result_does_not_wait_for_what_is_stuck_behind_it(
    database: Database, stuck_reads: int
) -> None:
    async def scenario() -> None:
        released = threading.Event()
        quick = asyncio.create_task(database.run_reading(lambda _: "done"))
        stuck = await stuck_until(released, database.run_reading, stuck_reads)
        assert await quick == "done"
        released.set()
        await asyncio.gather(*stuck)

    in_loop(scenario)


def test_a_result_is_kept_before_the_last_look(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raced(SimpleQueue[Any]):
        """Queue whose last work another thread takes while this one asks for it."""

        def empty(self) -> bool:
            if threading.current_thread() is threading.main_thread():
                return super().empty()
            deadline = time.monotonic() + PATIENCE / 2
            while database.readers._results._watched and time.monotonic() < deadline:  # type: ignore[attr-defined]
                time.sleep(0.001)
            return False

    monkeypatch.setattr(readers, "SimpleQueue", Raced)

    async def scenario() -> None:
        assert await database.run_reading(lambda _: "done") == "done"

    in_loop(scenario)


def test_what_is_stored_does_not_wait_for_a_transaction_that_is_stuck_behind_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GROUP", 1)

    async def scenario() -> None:
        opened, released = threading.Event(), threading.Event()
        first = await stuck_until(opened, database.run_writing)
        quick = asyncio.create_task(database.run_writing(lambda _: "done"))
        behind = asyncio.create_task(stuck_until(released, database.run_writing))
        await asyncio.sleep(0.01)  # so that both wait
        opened.set()
        assert await quick == "done"
        released.set()
        await asyncio.gather(*first, *await behind)

    in_loop(scenario)


def test_who_waits_too_long_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        released = threading.Event()
        stuck = await stuck_until(released, run, stuck_threads(run))
        monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0.05)
        called: list[Session] = []
        with pytest.raises(DatabaseBusyError):
            await run(called.append)
        released.set()
        await asyncio.gather(*stuck)
        assert not called

    in_loop(scenario)


def stuck_threads(run: Run) -> int:
    return engines.READERS if run.__name__ == "run_reading" else 1


def test_a_held_turn_keeps_its_place_and_the_others_waiting(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with database.writer.lend():
            behind = asyncio.create_task(database.run_writing(lambda _: "next"))
            await asyncio.sleep(0)
            monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0.05)
            with pytest.raises(DatabaseBusyError):
                async with database.writer.lend():
                    pytest.fail("two have the same turn")
            assert not behind.done()
        assert await behind == "next"

    in_loop(scenario)


def test_a_turn_stops_nobody_else_while_other_code_writes(database: Database) -> None:
    async def scenario() -> None:
        began = time.monotonic()
        with database.write() as session:
            session.connection()
            async with database.writer.lend():
                assert time.monotonic() - began < engines.BUSY_TIMEOUT / 2

    in_loop(scenario)


def test_a_turn_for_an_event_loop_that_has_closed_goes_to_the_next(database: Database) -> None:
    gone = asyncio.new_event_loop()
    gone.set_exception_handler(lambda *_: None)

    async def enter() -> None:
        await database.writer.lend().__aenter__()

    async def scenario() -> None:
        async with database.writer.lend():
            await asyncio.to_thread(gone.run_until_complete, started())
            await asyncio.to_thread(gone.close)
        assert await database.run_writing(lambda _: "next") == "next"

    async def started() -> None:
        kept.append(asyncio.ensure_future(enter()))
        await asyncio.sleep(0.01)

    kept: list[asyncio.Future[None]] = []
    in_loop(scenario)


def test_an_event_loop_that_has_closed_keeps_no_result_from_another(run: Run) -> None:
    async def give_up() -> None:
        kept.append(asyncio.ensure_future(run(str)))
        await asyncio.sleep(0)

    async def scenario() -> None:
        released = threading.Event()
        stuck = await stuck_until(released, run, stuck_threads(run))
        for _ in range(9):
            await asyncio.to_thread(asyncio.run, give_up())
        waiting = asyncio.ensure_future(run(lambda _: "next"))
        await asyncio.sleep(0)
        released.set()
        assert await waiting == "next"
        await asyncio.gather(*stuck)

    kept: list[asyncio.Future[Any]] = []
    in_loop(scenario)


def test_the_end_waits_for_every_thread_that_reads(database: Database) -> None:
    async def scenario() -> None:
        released, begun, ended = threading.Event(), threading.Event(), threading.Event()

        def read(_: Session) -> None:
            begun.set()
            time.sleep(0.3)
            ended.set()

        stuck = await stuck_until(released, database.run_reading)
        reading = asyncio.create_task(database.run_reading(read))
        await asyncio.to_thread(begun.wait, PATIENCE)
        released.set()
        await asyncio.gather(*stuck)
        await asyncio.to_thread(database.dispose)
        assert ended.is_set()
        await reading

    in_loop(scenario)


def test_who_waits_is_told_even_if_no_thread_can_help(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        released, errors = threading.Event(), []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: errors.append(told))
        stuck = await stuck_until(released, database.run_reading)
        monkeypatch.setattr(database.readers, "_start", fail)
        monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0.1)
        with pytest.raises(DatabaseBusyError):
            await database.run_reading(str)
        released.set()
        await asyncio.gather(*stuck)
        assert errors

    in_loop(scenario)


def test_the_writers_thread_outlives_whatever_a_transaction_raises(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OddError(BaseException):
        pass

    def fail(*_: object) -> None:
        raise OddError

    async def scenario() -> None:
        async with database.writer.lend():
            calls = [asyncio.create_task(database.run_writing(str)) for _ in range(2)]
            await asyncio.sleep(0.01)
            monkeypatch.setattr(writer, "share", fail)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in outcomes] == [OddError, str]
        assert await database.run_writing(lambda _: 1) == 1

    in_loop(scenario)
