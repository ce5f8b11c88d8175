# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Readers, as many at a time as SQLite serves well, each on a connection of its own."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

import anyio
from sqlalchemy import QueuePool, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.chassis.checks.finding import Degraded
from app.chassis.sessions import BlockSession, DatabaseBusyError, lent
from app.chassis.sqlite import engines
from app.chassis.sqlite.file import DatabaseFile
from app.chassis.sqlite.work import STUCK, Bind, Results, Work

Result = TypeVar("Result")

READERS_WAIT: Final = 2.0
"""Seconds that a route may wait to read before /health reports it."""

COLLECT_AFTER: Final = 0.1
"""Seconds to wait for other clients that also leave, before the garbage collector runs."""


class Readers:
    """Sessions that read, for routes and for code outside of a route, such as a stream.

    Neither can take a connection from the other.
    """

    def __init__(self, file: DatabaseFile) -> None:
        self.engine = engines.reader_engine(file)
        self._route_engine = engines.reader_engine(file)
        self._starting = threading.Lock()
        self._waiting: SimpleQueue[Work[Any] | None] = SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._begun = 0.0
        """Time at which a thread has begun the last work."""
        self._results = Results(self._look_after)
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
                self._waiting = SimpleQueue()
                self._start()
            self._waiting.put(work)
        self._results.watch()
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

    def settled(self, column: InstrumentedAttribute[int]) -> int:
        """Return the newest id. With one writer, ids are committed in their order."""
        with self.session() as session:
            return session.scalar(select(func.max(column))) or 0

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

    def _start(self, *, helping: bool = False) -> None:
        # A daemon, so that the end of a process does not wait for an unused result
        thread = threading.Thread(
            target=self._serve, args=[self._waiting, helping], name="database-reader", daemon=True
        )
        thread.start()
        self._threads.add(thread)

    def _look_after(self) -> bool:
        """Start one more thread if the others are stuck, and return whether anything waits."""
        if self._waiting.empty():
            return False
        now = time.monotonic()
        with self._starting:
            if now - self._begun > STUCK and 0 < len(self._threads) < engines.READERS:
                self._begun = now
                self._start(helping=True)
        return True

    def _serve(self, waiting: SimpleQueue[Work[Any] | None], helping: bool) -> None:
        with suppress(Empty):
            while (work := waiting.get(block=not helping)) is not None:
                if work.claim():
                    self._begun = time.monotonic()
                    work.call(self._route_engine)
                    self._results.add([work])
                if waiting.empty():
                    self._results.deliver()
            waiting.put(None)  # For the other threads
        self._results.deliver()
        if helping:
            with self._starting:
                self._threads.discard(threading.current_thread())

    def close(self) -> None:
        """End the threads and close the connections. Work that takes over a second is abandoned."""
        with self._starting:
            threads, self._threads = self._threads, set()
            self._waiting.put(None)
        deadline = time.monotonic() + 1
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.engine.dispose()
        self._route_engine.dispose()
