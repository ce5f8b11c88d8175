# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Threads in which routes wait for the server, one for each connection that they may have."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import anyio
from anyio._core._eventloop import threadlocals
from anyio.lowlevel import current_token

from app.chassis.sessions import DatabaseBusyError

Result = TypeVar("Result")

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for a turn, for a lock, and for a transaction that does not conflict."""


class Threads:
    """Threads of readers or of writers.

    Those of anyio cost two more turns of the event loop, and the end of a process waits for them.

    Args:
        name: Name that the threads have.
        size: Number of threads, and of coroutines that have a turn without a thread.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._turns = anyio.Semaphore(size, fast_acquire=True)
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = 0
        self._threads: list[threading.Thread] = []

    @property
    def taken(self) -> int:
        """Return how many turns are taken."""
        return self.size - self._turns.value

    async def acquire(self) -> None:
        """Take a turn.

        Raises:
            DatabaseBusyError: Others have kept all of them for too long.
        """
        try:
            self._turns.acquire_nowait()
        except anyio.WouldBlock:
            try:
                with anyio.fail_after(BUSY_TIMEOUT):
                    await self._turns.acquire()
            except TimeoutError:
                raise DatabaseBusyError from None

    def release(self) -> None:
        self._turns.release()

    async def run(self, function: Callable[[], Result]) -> Result:
        """Call a function in a thread. It still runs if the caller stops waiting.

        Raises:
            DatabaseBusyError: No thread was free in time.
        """
        await self.acquire()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        context, token = copy_context(), current_token()

        def settle(error: BaseException | None, result: Any) -> None:
            self._turns.release()
            if future.done():
                return  # Nobody waits any more
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def answer(error: BaseException | None, result: Any = None) -> None:
            try:
                loop.call_soon_threadsafe(settle, error, result)
            except RuntimeError:  # The loop is closed, and nobody waits there
                self._turns.release()

        def work() -> None:
            # This makes `anyio.from_thread` work as in a thread of anyio's own
            threadlocals.current_token = token
            try:
                result = context.run(function)
            except StopIteration as error:
                # A future refuses StopIteration, because a coroutine could not raise it on
                refused = RuntimeError("A function in a thread raised StopIteration")
                refused.__cause__ = error
                answer(refused)
            except BaseException as error:
                answer(error)
            else:
                answer(None, result)

        try:
            self._give(work)
        except BaseException:
            self._turns.release()
            raise
        return await future

    def _give(self, work: Callable[[], None]) -> None:
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self.size:
                # A daemon, so that the end of a process does not wait for an unused result
                thread = threading.Thread(
                    target=self._serve, args=[self._waiting], name=self.name, daemon=True
                )
                thread.start()  # The system may refuse another one
                self._threads.append(thread)
            self._waiting.put(work)

    def _serve(self, waiting: SimpleQueue[Callable[[], None] | None]) -> None:
        while (work := waiting.get()) is not None:
            work()
            del work  # It has the function's result
            with self._lock:
                if waiting is self._waiting:  # Otherwise it has been closed meanwhile
                    self._idle += 1

    def close(self) -> None:
        """End the threads. Work that takes over a second is abandoned."""
        with self._lock:
            threads, self._threads, self._idle = self._threads, [], 0
            waiting, self._waiting = self._waiting, SimpleQueue()
        for _ in threads:
            waiting.put(None)
        deadline = time.monotonic() + 1
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
