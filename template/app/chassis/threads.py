# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Thread that works for the event loop, with many pieces of work between two thread changes.

`anyio.to_thread` changes threads twice for each piece, and has as many threads as there are pieces.
If the pieces are short, these changes are most of what the processor does, and the threads keep the
interpreter's lock from each other.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from anyio._core._eventloop import threadlocals
from anyio.lowlevel import EventLoopToken, current_token

Result = TypeVar("Result")

STUCK: Final = 0.02
"""Seconds in which no work begins, after which the waiting work gets one more thread."""

TOGETHER: Final = 0.004
"""Seconds that a result waits for the results of the work behind it."""


class Work(Generic[Result]):
    """Function to call once, with the future that waits for its result until a deadline."""

    __slots__ = (
        "context",
        "deadline",
        "error",
        "function",
        "future",
        "groups",
        "loop",
        "result",
        "token",
    )

    def __init__(
        self, function: Callable[[Any], Result], deadline: float, *, groups: bool = False
    ) -> None:
        self.function = function
        self.deadline = deadline
        self.groups = groups
        self.context = copy_context()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Result] = self.loop.create_future()
        self.error: BaseException | None = None
        self.token = token_of(self.loop)

    @property
    def left(self) -> float:
        """Return the seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())

    def call(self, argument: object) -> None:
        """Call the function in a thread, and keep its result or its error."""
        # This makes `anyio.from_thread` work as in a thread of anyio's own
        threadlocals.current_token = self.token
        try:
            self.result = self.context.run(self.function, argument)
        except StopIteration as error:
            # A future refuses StopIteration, because a coroutine could not raise it on
            self.error = RuntimeError("A function in a thread raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:
            self.error = error

    def settle(self) -> None:
        """Give the result to the future in the event loop, if somebody still waits."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


@lru_cache(maxsize=1)
def token_of(_: asyncio.AbstractEventLoop) -> EventLoopToken:
    """Return the running event loop's token, which only this loop can make."""
    return current_token()


def call_each(group: Sequence[Work[Any]]) -> None:
    for work in group:
        work.call(work.left)


class Threads:
    """Thread that does work in the order it comes, and helpers while that thread is stuck.

    Args:
        name: Name of the threads, for debuggers.
        busy: Error that is raised when no thread is free in time.
        most: Maximum number of threads.
        do: Function that calls the works of a group, one after the other.
        at_once: Maximum number of waiting works that `do` gets, if they may be grouped.
    """

    def __init__(
        self,
        name: str,
        busy: type[Exception],
        *,
        most: int = 1,
        do: Callable[[Sequence[Work[Any]]], None] = call_each,
        at_once: int = 1,
    ) -> None:
        self.name = name
        self.busy = busy
        self.most = most
        self.do = do
        self.at_once = at_once
        self.waiting: deque[Work[Any]] = deque()
        self.done: deque[Work[Any]] = deque()
        self.done_since = 0.0
        self.last_begun = 0.0
        self.signals: SimpleQueue[bool] = SimpleQueue()
        self.first: threading.Thread | None = None
        self.helpers: set[threading.Thread] = set()
        self.watched: asyncio.AbstractEventLoop | None = None

    async def run(
        self, function: Callable[[Any], Result], patience: float, *, groups: bool = False
    ) -> Result:
        """Call a function in a thread. A caller that stops waiting for it does not stop it.

        Args:
            function: Function to call. `do` gives it its argument, by default the seconds left.
            patience: Seconds to wait for a thread.
            groups: True if it may be done in a group with others.

        Raises:
            busy: No thread was free in that time.
        """
        work = Work(function, time.monotonic() + patience, groups=groups)
        return await self._hand_over(work).future

    @asynccontextmanager
    async def held(self, patience: float) -> AsyncIterator[float]:
        """Hold a turn for work that is done elsewhere, and yield the seconds left of the patience.

        Raises:
            busy: No thread was free in that time.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[float] = loop.create_future()
        over = threading.Event()

        def begin(left: float) -> None:
            if not turn.done():
                turn.set_result(left)

        def hold(left: float) -> None:
            loop.call_soon_threadsafe(begin, left)
            over.wait()

        def end(held: asyncio.Future[None]) -> None:
            if (error := held.exception()) and not turn.done():
                turn.set_exception(error)

        self._hand_over(Work(hold, time.monotonic() + patience)).future.add_done_callback(end)
        try:
            yield await turn
        finally:
            over.set()

    def close(self) -> None:
        """End the threads. Work that is still being done is left to itself after a second."""
        if self.first is not None:
            self.signals.put(False)
            self.first.join(1)
            self.first = None

    def _hand_over(self, work: Work[Result]) -> Work[Result]:
        if self.first is None:
            self.signals = SimpleQueue()
            self.first = self._start(self._serve, self.signals)
        self.waiting.append(work)
        self.signals.put(True)
        if self.watched is not work.loop:
            self.watched = work.loop
            work.loop.call_later(STUCK, self._look_after, work.loop)
        return work

    def _start(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        # The threads are daemons, so that the end of a process does not wait for unused results
        thread = threading.Thread(target=target, args=arguments, name=self.name, daemon=True)
        thread.start()
        return thread

    def _serve(self, signals: SimpleQueue[bool]) -> None:
        while signals.get():
            self._do_next()

    def _help(self) -> None:
        while self._do_next():
            pass
        self.helpers.discard(threading.current_thread())

    def _do_next(self) -> bool:
        group = self._take()
        if not group:
            return False
        self.last_begun = time.monotonic()
        try:
            self.do(group)
        except BaseException as error:  # The thread has to live on
            for work in group:
                work.error = work.error or error
        now = time.monotonic()
        if not self.done:
            self.done_since = now
        self.done.extend(group)
        if not self.waiting or now - self.done_since > TOGETHER:
            self._deliver()
        return True

    def _take(self) -> list[Work[Any]]:
        group: list[Work[Any]] = []
        with suppress(IndexError):
            while len(group) < self.at_once:
                work = self.waiting.popleft()
                if group and not (work.groups and group[0].groups):
                    self.waiting.appendleft(work)
                    break
                group.append(work)
        return group

    def _deliver(self) -> None:
        """Give each result to the event loop that waits for it, from any thread."""
        finished: dict[asyncio.AbstractEventLoop, list[Work[Any]]] = {}
        with suppress(IndexError):
            while True:
                work = self.done.popleft()
                finished.setdefault(work.loop, []).append(work)
        for loop, works in finished.items():
            with suppress(RuntimeError):  # The loop is closed, and nobody waits
                loop.call_soon_threadsafe(settle, works)

    def _look_after(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse late work and help stuck work, repeatedly while any work waits."""
        now = time.monotonic()
        for work in list(self.waiting):
            if work.deadline > now:
                break
            with suppress(ValueError):  # A thread has just taken it
                self.waiting.remove(work)
                work.error = self.busy()
                work.settle()
        if self.waiting and now - self.last_begun > STUCK and len(self.helpers) < self.most - 1:
            self.last_begun = now
            self.helpers.add(self._start(self._help))
        self._deliver()
        if self.waiting:
            loop.call_later(STUCK, self._look_after, loop)
        else:
            self.watched = None


def settle(works: Iterable[Work[Any]]) -> None:
    for work in works:
        work.settle()
