"""What a thread of the database's promises to those who wait for it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from app.chassis.threads import Threads, Work

PATIENCE = 10.0

marked: ContextVar[str] = ContextVar("marked", default="")


class TooBusyError(Exception):
    pass


@pytest.fixture
def one() -> Iterator[Threads]:
    threads = Threads("test", TooBusyError)
    yield threads
    threads.close()


@pytest.fixture
def two() -> Iterator[Threads]:
    threads = Threads("test", TooBusyError, most=2)
    yield threads
    threads.close()


def in_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario()

    asyncio.run(bounded())


def test_work_is_done_in_its_order_in_one_thread(one: Threads) -> None:
    async def scenario() -> None:
        done: list[tuple[int, int]] = []

        def work(number: int, _: float) -> str:
            done.append((number, threading.get_ident()))
            return threading.current_thread().name

        calls = (one.run(partial(work, number), PATIENCE) for number in range(50))
        assert set(await asyncio.gather(*calls)) == {"test"}
        assert [number for number, _ in done] == list(range(50))
        assert len({ident for _, ident in done}) == 1

    in_loop(scenario)


def test_a_stuck_thread_gets_help(two: Threads) -> None:
    async def scenario() -> None:
        released = threading.Event()
        stuck = two.run(lambda _: released.wait(PATIENCE), PATIENCE)
        helped = two.run(lambda _: released.set(), PATIENCE)
        assert (await asyncio.gather(stuck, helped))[0] is True

    in_loop(scenario)


def test_a_result_does_not_wait_for_what_is_stuck_behind_it(one: Threads) -> None:
    async def scenario() -> None:
        released = threading.Event()
        quick = asyncio.create_task(one.run(lambda _: "done", PATIENCE))
        stuck = asyncio.create_task(one.run(lambda _: released.wait(PATIENCE), PATIENCE))
        assert await quick == "done"
        released.set()
        assert await stuck is True

    in_loop(scenario)


def test_who_waits_too_long_is_told(one: Threads) -> None:
    async def scenario() -> None:
        released = threading.Event()
        stuck = asyncio.create_task(one.run(lambda _: released.wait(PATIENCE), PATIENCE))
        await asyncio.sleep(0)
        called: list[float] = []
        with pytest.raises(TooBusyError):
            await one.run(called.append, 0.05)
        released.set()
        await stuck
        assert not called

    in_loop(scenario)


def test_work_is_told_how_much_of_the_patience_is_left(one: Threads) -> None:
    async def scenario() -> None:
        slow = one.run(lambda _: threading.Event().wait(0.2), PATIENCE)
        _, left = await asyncio.gather(slow, one.run(lambda left: left, PATIENCE))
        assert 0 < left <= PATIENCE - 0.2

    in_loop(scenario)


def test_who_stops_waiting_does_not_stop_the_work(one: Threads) -> None:
    async def scenario() -> None:
        begun, released, ended = threading.Event(), threading.Event(), threading.Event()

        def work(_: float) -> None:
            begun.set()
            released.wait(PATIENCE)
            ended.set()

        task = asyncio.create_task(one.run(work, PATIENCE))
        await asyncio.to_thread(begun.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        released.set()
        assert await one.run(lambda _: ended.is_set(), PATIENCE)

    in_loop(scenario)


@pytest.mark.parametrize("error", [ValueError, StopIteration, KeyboardInterrupt])
def test_an_error_is_raised_where_the_work_is_awaited(
    one: Threads, error: type[BaseException]
) -> None:
    def fail(_: float) -> None:
        raise error

    async def scenario() -> None:
        expected = RuntimeError if error is StopIteration else error
        with pytest.raises(expected):
            await one.run(fail, PATIENCE)
        assert await one.run(lambda _: 1, PATIENCE) == 1

    in_loop(scenario)


def test_work_has_the_context_of_who_waits(one: Threads) -> None:
    async def scenario() -> None:
        marked.set("here")
        assert await one.run(lambda _: marked.get(), PATIENCE) == "here"

    in_loop(scenario)


def test_a_held_turn_keeps_its_place_and_the_others_waiting(one: Threads) -> None:
    async def scenario() -> None:
        async with one.held(PATIENCE):
            behind = asyncio.create_task(one.run(lambda _: "next", PATIENCE))
            with pytest.raises(TooBusyError):
                async with one.held(0.05):
                    pytest.fail("two have the same turn")
            assert not behind.done()
        assert await behind == "next"

    in_loop(scenario)


def test_who_gives_up_a_turn_holds_up_nobody(one: Threads) -> None:
    async def scenario() -> None:
        async def hold() -> None:
            async with one.held(PATIENCE):
                pytest.fail("it was given up")

        async with one.held(PATIENCE):
            waiting = asyncio.create_task(hold())
            await asyncio.sleep(0.01)
            waiting.cancel()
        assert await one.run(lambda _: "next", PATIENCE) == "next"

    in_loop(scenario)


def test_works_in_one_event_loop_after_the_other(one: Threads) -> None:
    async def scenario() -> None:
        released = threading.Event()
        given_up = asyncio.create_task(one.run(lambda _: released.wait(0.1), PATIENCE))
        assert await asyncio.wait([given_up], timeout=0.01)
        given_up.cancel()

    for _ in range(3):
        in_loop(scenario)
    one.close()
    in_loop(scenario)


def test_what_calls_the_work_may_fail_and_the_thread_lives_on() -> None:
    def do(group: Sequence[Work[Any]]) -> None:
        if len(group) == 1:
            raise KeyboardInterrupt
        for work in group:
            work.call(len(group))

    async def scenario() -> None:
        with pytest.raises(KeyboardInterrupt):
            await threads.run(str, PATIENCE, groups=True)
        async with asyncio.timeout(PATIENCE):
            calls = [threads.run(str, PATIENCE, groups=True) for _ in range(2)]
            assert await asyncio.gather(*calls) == ["2", "2"]

    threads = Threads("test", TooBusyError, do=do, at_once=2)
    in_loop(scenario)
    threads.close()
