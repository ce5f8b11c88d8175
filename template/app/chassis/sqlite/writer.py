# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Writer, one thread and one connection that take what there is to write in its order.

What waits for the writer shares a transaction, and so the wait for the disk. The figures are in
the template's docs/decisions/0013-threads-of-the-database.md.
"""

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import anyio
from anyio.to_thread import run_sync
from sqlalchemy import Connection, exc
from sqlalchemy.orm import Session

from app.chassis.sessions import DatabaseBusyError, DatabaseUnavailableError, connect, lent
from app.chassis.sqlite import engines
from app.chassis.sqlite.file import DatabaseFile
from app.chassis.sqlite.work import Bind, Results, Work, deliver

Result = TypeVar("Result")

GROUP: Final = 64
"""Maximum number of routes that write in one transaction."""

GROUP_SECONDS: Final = 0.02
"""Seconds after which such a transaction takes no more routes. Its routes wait for the commit."""

HAS_DEFERRED: Final = "SELECT 1 FROM sqlite_master WHERE sql LIKE '%INITIALLY DEFERRED%'"
"""Query that finds foreign keys that SQLite checks only at the commit."""


class SingleWriter:
    """Thread that writes, and the one connection for it and for coroutines."""

    def __init__(self, file: DatabaseFile, synchronous: str) -> None:
        self.file = file
        self.engine = engines.writer_engine(file, synchronous)
        self._commits = anyio.CapacityLimiter(1)
        self._lock = threading.Lock()
        self._waiting: deque[Work[Any]] = deque()
        self._busy = False
        self._holder: Work[Any] | None = None
        self._thread: threading.Thread | None = None
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._results = Results(lambda: self._busy)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a session for code outside of the server, and commit it at the end."""
        with lent(self.engine) as session, session.begin():
            yield session
        self.file.require_written()

    async def run(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a session in the writer's thread, and commit it."""

        def write(bind: Bind) -> Result:
            with lent(bind) as session:
                result = function(session)
                session.commit()
            return result

        return await self._wait(Work(write))

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Session]:
        """Yield a session for as long as a coroutine needs it, and commit it at the end."""
        turn: Work[None] = Work(None)
        try:
            await self._wait(turn)
            with lent(self.engine, busy_timeout=turn.left) as session:
                yield session
                await run_sync(session.commit, limiter=self._commits)
            self.file.require_written()
        finally:
            turn.claim()  # It is no longer to be given
            with self._lock:
                if self._holder is turn:
                    self._holder = None
                    self._wake()

    def close(self) -> None:
        """End the thread, and close the connection and the file, on which the readers are closed.

        Work that takes over a second is abandoned.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            self._wakes.put(False)
        if thread is not None:
            thread.join(1)
        self.engine.dispose()
        self.file.close()

    async def _wait(self, work: Work[Result]) -> Result:
        with self._lock:
            self._waiting.append(work)
            if not self._busy:
                self._busy = True
                self._wake()
        self._results.watch()
        return await work.wait()

    def _wake(self) -> None:
        if self._thread is None:
            self._wakes = SimpleQueue()
            # It is a daemon, so that the end of a process does not wait for an unused result
            self._thread = threading.Thread(
                target=self._serve, args=[self._wakes], name="database-writer", daemon=True
            )
            self._thread.start()
        self._wakes.put(True)

    def _serve(self, wakes: SimpleQueue[bool]) -> None:
        while wakes.get():
            while works := self._take():
                while works:
                    settled = self._transact(works)
                    self._results.add(works[:settled])
                    works = works[settled:]
                    if not (works or self._waiting):
                        # Before the next turn, so that what the results lead to shares it
                        self._results.deliver()
            self._results.deliver()

    def _take(self) -> list[Work[Any]]:
        """Return works for the next transactions, or give a coroutine its turn and return none."""
        with self._lock:
            works: list[Work[Any]] = []
            while self._waiting and len(works) < GROUP:
                if works and self._waiting[0].function is None:
                    break
                work = self._waiting.popleft()
                if not work.claim():
                    continue
                if work.function is not None:
                    works.append(work)
                    continue
                work.result = None
                if deliver([work]):
                    self._holder = work
                    return []
            self._busy = bool(works)
            return works

    def _transact(self, works: Sequence[Work[Any]]) -> int:
        """Run one transaction with the first works, and return how many it settles (1 or more)."""
        begun = 0
        try:
            # One limit counts for the turn and the lock, and the first has waited the longest
            with connect(self.engine) as connection:
                connection.execution_options(busy_timeout=works[0].left)
                if len(works) == 1:
                    begun = 1
                    works[0].call(connection)
                else:
                    with connection.begin():
                        until = time.monotonic() + GROUP_SECONDS
                        if connection.exec_driver_sql(HAS_DEFERRED).first():
                            until = 0.0  # The commit would refuse all works for the rows of one
                        while begun < len(works) and (not begun or time.monotonic() < until):
                            begun += 1
                            share(works[begun - 1], connection)
            self.file.require_written()
        except BaseException as error:  # The thread has to live on
            # None of these works was stored. If the lock did not come, only the first one fails,
            # because the others have more time left
            begun = max(begun, 1)
            if begun > 1 and isinstance(error, exc.IntegrityError):
                # One of them has deferred its foreign keys, and nobody knows which one
                error = DatabaseBusyError()
            for work in works[:begun]:
                work.error = work.error or error
        return begun


def share(work: Work[Any], connection: Connection) -> None:
    """Call a work in a shared transaction, and raise its error if SQLite has undone all of it.

    Raises:
        BaseException: The reason, as of a full disk.
    """
    work.call(connection)
    driver: Any = connection.connection.dbapi_connection
    if not driver.in_transaction:
        work.error = cause(work.error)
        raise work.error


def cause(error: BaseException | None) -> BaseException:
    """Return why SQLite undid a transaction. Later errors only say that there is none any more."""
    earlier = error
    while earlier is not None:
        if isinstance(earlier, DatabaseUnavailableError):
            return earlier
        earlier = earlier.__context__
    return error or RuntimeError("A route has ended the transaction that it shares")
