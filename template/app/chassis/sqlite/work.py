# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Work that coroutines give to the threads of the readers and of the writer."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final, Generic, TypeVar

from anyio._core._eventloop import threadlocals
from anyio.lowlevel import current_token
from sqlalchemy import Connection, Engine

from app.chassis.sessions import DatabaseBusyError
from app.chassis.sqlite import engines

Bind = Engine | Connection
Result = TypeVar("Result")

STUCK: Final = 0.02
"""Seconds between two looks at the threads while anything waits for them."""

TOGETHER: Final = 0.004
"""Seconds that a result waits for those of the work behind it, to wake the event loop once."""


class Work(Generic[Result]):
    """Function that waits for a thread of the database, while a coroutine awaits its result.

    Args:
        function: Function to call with the engine, or with the connection whose transaction it
            shares. None waits only for the turn to write.
    """

    def __init__(self, function: Callable[[Bind], Result] | None) -> None:
        self.function = function
        self.deadline = time.monotonic() + engines.BUSY_TIMEOUT
        self.error: BaseException | None = None
        self.result: Result
        self._context = copy_context()
        self._token = current_token()
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Result] = self._loop.create_future()
        self._claimed = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())

    async def wait(self) -> Result:
        """Return the function's result. It still runs if the caller stops waiting.

        Raises:
            DatabaseBusyError: It has not begun within BUSY_TIMEOUT.
        """
        timer = self._loop.call_later(self.left, self._refuse)
        try:
            return await self._future
        finally:
            timer.cancel()

    def claim(self) -> bool:
        """Return True to the first caller only, which then does the work or gives it up."""
        return self._claimed.acquire(blocking=False)

    def call(self, bind: Bind) -> None:
        """Call the function in this thread, and keep its result or its error."""
        assert self.function
        # This makes `anyio.from_thread` work as in a thread of anyio's own
        threadlocals.current_token = self._token
        try:
            self.result = self._context.run(self.function, bind)
        except StopIteration as error:
            # A future refuses StopIteration, because a coroutine could not raise it on
            self.error = RuntimeError("A function in a thread raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:
            self.error = error

    def _refuse(self) -> None:
        if self.claim():
            self.error = DatabaseBusyError()
            self._settle()

    def _settle(self) -> None:
        if self._future.done():
            return  # Nobody waits any more
        if self.error is None:
            self._future.set_result(self.result)
        else:
            self._future.set_exception(self.error)


class Results:
    """Results of a thread, which wait a moment for those of the work behind them.

    Args:
        look: Function that the event loop calls every STUCK seconds, and which returns whether
            anything still waits for the thread.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._done: deque[Work[Any]] = deque()
        self._since = 0.0
        self._watched: asyncio.AbstractEventLoop | None = None

    def watch(self) -> None:
        """Begin to look, because something waits. One timer serves all that wait."""
        loop = asyncio.get_running_loop()
        if self._watched is not loop:
            self._watched = loop
            loop.call_later(STUCK, self._watch, loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        timer = loop.call_later(STUCK, self._watch, loop)
        if time.monotonic() - self._since > STUCK:
            self.deliver()  # What waits behind long work
        if not self._look():
            timer.cancel()
            self._watched = None
            self.deliver()

    def add(self, works: Sequence[Work[Any]]) -> None:
        """Keep results, and deliver all if the first waits too long.

        A thread that has no more work calls `deliver`. It has to look for more work after this
        call. Otherwise another thread could do that work, and deliver before these are kept.
        """
        now = time.monotonic()
        if not self._done:
            self._since = now
        self._done.extend(works)
        if now - self._since > TOGETHER:
            self.deliver()

    def deliver(self) -> None:
        """Deliver all results from any thread."""
        works: list[Work[Any]] = []
        with suppress(IndexError):
            while True:
                works.append(self._done.popleft())
        deliver(works)


def deliver(works: Sequence[Work[Any]]) -> bool:
    """Give results from any thread to the event loops that wait, and return whether all run."""

    def settle(loop: asyncio.AbstractEventLoop) -> None:
        for work in works:
            if work._loop is loop:
                work._settle()

    running = True
    for loop in {work._loop for work in works}:
        try:
            loop.call_soon_threadsafe(settle, loop)
        except RuntimeError:  # It is closed, and nobody waits there
            running = False
    return running
