# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Readers, as many at a time as SQLite serves well, each on a connection of its own."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

import anyio
from anyio._core._eventloop import threadlocals
from anyio.lowlevel import current_token
from sqlalchemy import Connection, Engine, QueuePool
from sqlalchemy.orm import Session

from app.chassis.checks.finding import Degraded
from app.chassis.sqlite import engines
from app.chassis.sqlite.file import DatabaseBusyError, DatabaseFile
from app.chassis.sqlite.sessions import BlockSession, lent

Bind = Engine | Connection
Result = TypeVar("Result")

READERS_WAIT: Final = 2.0
"""Seconds that a route may wait to read before /health reports it."""

COLLECT_AFTER: Final = 0.1
"""Seconds to wait for other clients that also leave, before the garbage collector runs."""


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

    def deliver(self) -> bool:
        """Give the result to the event loop from any thread, and return whether it still runs."""
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            return False
        return True

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


class Readers:
    """Sessions that read, for routes and for code outside of a route, such as a stream.

    Neither can take a connection from the other.
    """

    def __init__(self, file: DatabaseFile) -> None:
        self.engine = engines.reader_engine(file)
        self._route_engine = engines.reader_engine(file)
        self._starting = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._waiting: SimpleQueue[Work[Any] | None] = SimpleQueue()
        self._coroutines = anyio.Semaphore(engines.READERS, fast_acquire=True)
        self._collecting = False

    def session(self) -> BlockSession:
        """Return a session that ends with its `with` block, for code outside of a route."""
        return BlockSession(self.engine, expire_on_commit=False)

    async def run(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a session in a thread."""

        def read(bind: Bind) -> Result:
            with lent(bind) as session:
                return function(session)

        work = Work(read)
        with self._starting:
            if not self._threads:
                self._start()
            self._waiting.put(work)
        return await work.wait()

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Session]:
        """Yield a session with one consistent view, for as long as a coroutine needs it."""
        try:
            with anyio.fail_after(engines.BUSY_TIMEOUT):
                await self._coroutines.acquire()
        except TimeoutError:
            raise DatabaseBusyError from None
        try:
            # Nothing here waits, because a session connects at its first statement, and the end
            # of a read transaction touches no disk
            with lent(self._route_engine) as session:
                yield session
        finally:
            self._coroutines.release()

    async def look(self) -> None:
        """Check for /health that routes and other code can read without waiting for others.

        Raises:
            Degraded: Something keeps all sessions of `read`, or all of the routes' threads.
        """
        if self._taken() >= 2 * engines.READERS:
            raise Degraded("every session outside of routes is taken: something keeps them")
        try:
            with anyio.fail_after(READERS_WAIT):
                await self.run(lambda _: None)
        except TimeoutError:
            raise Degraded("routes have to wait until they can read") from None

    def end_abandoned(self) -> None:
        """End the sessions of generators whose clients have left.

        Only the error that has cancelled such a generator refers to it. The two form a reference
        cycle, which Python's collector would find after minutes.
        """
        open_sessions = self._taken() or self._coroutines.value < engines.READERS
        if open_sessions and not self._collecting:
            self._collecting = True
            asyncio.get_running_loop().call_later(COLLECT_AFTER, self._collect)

    def _collect(self) -> None:
        self._collecting = False
        gc.collect()

    def _taken(self) -> int:
        """Return how many sessions outside of routes are open."""
        assert isinstance(self.engine.pool, QueuePool)
        return self.engine.pool.checkedout()

    def _start(self) -> None:
        self._waiting = SimpleQueue()
        for _ in range(engines.READERS):
            # A daemon, so that the end of a process does not wait for an unused result
            thread = threading.Thread(
                target=self._serve, args=[self._waiting], name="database-reader", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _serve(self, waiting: SimpleQueue[Work[Any] | None]) -> None:
        while (work := waiting.get()) is not None:
            if work.claim():
                work.call(self._route_engine)
                work.deliver()

    def close(self) -> None:
        """End the threads and close the connections. Work that takes over a second is abandoned."""
        with self._starting:
            threads, self._threads = self._threads, []
            for _ in threads:
                self._waiting.put(None)
        for thread in threads:
            thread.join(1 / len(threads))
        self.engine.dispose()
        self._route_engine.dispose()
