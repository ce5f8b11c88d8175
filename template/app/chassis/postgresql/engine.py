# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Readers and writers of a server that other processes write to as well.

A writing transaction is SERIALIZABLE. It acts as if it were alone, or it loses against another one
and is run again. So whatever a service does in a transaction can happen twice, and only what the
last try does to the database counts.
"""

import asyncio
import gc
import random
import select
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar
from weakref import WeakSet

import anyio
import psycopg
from anyio.to_thread import run_sync
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, ExceptionContext, QueuePool, create_engine, event, exc
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.chassis.checks.finding import Degraded
from app.chassis.postgresql import errors, threads
from app.chassis.postgresql.errors import ConflictError
from app.chassis.postgresql.settings import PostgreSQLSettings
from app.chassis.postgresql.settled import Settled
from app.chassis.sessions import (
    BlockSession,
    DatabaseBusyError,
    DatabaseUnavailableError,
    LentSession,
    lent,
)
from app.chassis.times import keep_in_utc

Result = TypeVar("Result")

PAUSE: Final = 0.002
"""Seconds of the first pause before a lost transaction is run again. Each further one is longer."""

LONGEST_PAUSE: Final = 0.1

LOSSES: Final = 3
"""Number of losses after which a transaction runs alone in its process."""

LONG_IDLE: Final = 30.0
"""Seconds without use after which a connection is tested before it is used again."""

COLLECT_AFTER: Final = 0.1
"""Seconds to wait for other clients that also leave, before the garbage collector runs."""

READERS_WAIT: Final = 2.0
"""Seconds that a route may wait to read before /health reports it."""

SWALLOWED: Final = (
    "A statement failed, and the server has undone the transaction with it. Code that goes on "
    "after such an error has to try it in a savepoint: `with session.begin_nested()`"
)

CONNECT: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""Options with which the driver notices that a server has gone silent."""


class Connection(psycopg.Connection[Any]):
    """Connection that knows how its transaction went, and can close what is read from it."""

    isolation: psycopg.IsolationLevel = psycopg.IsolationLevel.SERIALIZABLE
    used = 0.0
    """Time of the last use."""
    conflicted = False
    """Whether a statement of this session has lost against another transaction."""
    committed = False
    """Whether something of this session is stored, or may be."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cursors: WeakSet[Any] = WeakSet()

    def __del__(self, *_: Any) -> None:
        """Close without the driver's warning, for tests that only make an application."""
        if hasattr(self, "pgconn"):
            self.pgconn.finish()

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Open a cursor, and remember it for as long as somebody else uses it."""
        cursor = super().cursor(*arguments, **options)
        self._cursors.add(cursor)
        return cursor

    def end_cursors(self) -> None:
        """Close every cursor, so that nobody reads from it while another session has this one."""
        for cursor in list(self._cursors):
            try:
                cursor.close()
            except psycopg.Error:
                psycopg.Cursor.close(cursor)  # The server is gone, and its part with it

    def commit(self) -> None:
        """Commit, and refuse a transaction that the server would quietly roll back.

        Raises:
            psycopg.Error: A statement has failed, and the code went on.
        """
        if self.pgconn.transaction_status == TransactionStatus.INERROR:
            if self.conflicted:
                raise psycopg.errors.SerializationFailure
            raise psycopg.errors.InFailedSqlTransaction(SWALLOWED)
        before = self.committed
        self.committed |= self.pgconn.transaction_status == TransactionStatus.INTRANS
        try:
            super().commit()
        except psycopg.Error:
            if not self.closed:  # The server has answered, so it has stored nothing
                self.committed = before
            raise

    def is_cut(self) -> bool:
        """Return whether the server has closed the connection. Its socket can then be read."""
        if self.closed:
            return True
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))


class ReadingConnection(Connection):
    """Connection of a reader."""

    isolation = psycopg.IsolationLevel.REPEATABLE_READ

    def rollback(self) -> None:
        """End the transaction, which has changed nothing.

        After a real rollback the driver forgets the statements that it has prepared.
        """
        if self.pgconn.transaction_status == TransactionStatus.INTRANS:
            super().commit()
        else:
            super().rollback()


def make_engine(settings: PostgreSQLSettings, kind: type[Connection], size: int) -> Engine:
    """Return an engine with a number of connections of a kind."""
    url, options = settings.url, dict(CONNECT)
    if settings.is_pooled:
        # Prepared statements and options belong to a connection of the server's own
        options["prepare_threshold"] = None
    else:
        given = url.query.get("options", "")
        own = f"-c TimeZone=UTC -c lock_timeout={threads.BUSY_TIMEOUT:g}s"
        options["options"] = f"{own} {given}".strip()
    options |= {name: url.query[name] for name in options.keys() & url.query.keys() - {"options"}}

    engine = create_engine(
        url.difference_update_query(options),
        connect_args=options,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=threads.BUSY_TIMEOUT,
        pool_use_lifo=True,
        use_native_hstore=False,
    )
    keep_in_utc(engine.dialect)
    writes = kind is not ReadingConnection

    @event.listens_for(engine, "do_connect")
    def connect(_: Any, __: Any, arguments: Any, options: Any) -> Connection:
        connection = kind.connect(*arguments, **options)
        if settings.is_pooled:
            connection.autocommit = True
            connection.execute("SET TIME ZONE 'UTC'")
            connection.autocommit = False
        connection.isolation_level = kind.isolation
        if not writes:
            connection.read_only = True  # Otherwise the server's default decides
        connection.used = time.monotonic()
        return connection

    @event.listens_for(engine, "checkout")
    def look(connection: Any, _: object, __: object) -> None:
        idle = time.monotonic() - connection.used
        try:
            cut = connection.is_cut() or (
                idle > LONG_IDLE and not engine.dialect.do_ping(connection)
            )
        except psycopg.Error:
            cut = True
        if cut:
            raise exc.InvalidatePoolError
        connection.conflicted = connection.committed = False

    @event.listens_for(engine, "checkin")
    def take_back(connection: Any, _: object) -> None:
        if connection is None:
            return
        connection.used = time.monotonic()
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            # After a refused commit SQLAlchemy takes the transaction for ended
            try:
                connection.rollback()
            except psycopg.Error:
                connection.close()

    @event.listens_for(engine, "handle_error", retval=True)
    def explain(context: ExceptionContext) -> BaseException | None:
        found = errors.explain(context, writes=writes)
        if isinstance(found, ConflictError) and context.connection is not None:
            driver: Any = context.connection.connection.dbapi_connection
            driver.conflicted = True
        return found

    return engine


@asynccontextmanager
async def for_coroutine(engine: Engine) -> AsyncIterator[LentSession]:
    """Yield a session, and wait for its end in a thread."""
    session = LentSession(engine, expire_on_commit=False)
    try:
        yield session
    finally:
        if session._connection is None:
            session.end()
        else:
            with anyio.CancelScope(shield=True):
                await run_sync(session.end, limiter=anyio.CapacityLimiter(1))


class Readers:
    """Sessions that read, for routes and for code outside of a route, such as a stream.

    Neither can take a connection from the other.
    """

    def __init__(self, settings: PostgreSQLSettings) -> None:
        size = settings.database_connections - settings.database_connections // 2
        self.engine = make_engine(settings, ReadingConnection, settings.for_others)
        self._route_engine = make_engine(settings, ReadingConnection, size)
        self._threads = threads.Threads("database-reader", size)
        self._settled = Settled()
        self._collecting = False

    def session(self) -> BlockSession:
        """Return a session that ends with its `with` block, for code outside of a route."""
        return BlockSession(self.engine, expire_on_commit=False)

    async def run(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a session in a thread, again if its connection was cut."""

        def read() -> Result:
            try:
                return self._read(function)
            except DatabaseUnavailableError as error:
                if not errors.is_lost(error.orig):
                    raise
            return self._read(function)

        return await self._threads.run(read)

    def _read(self, function: Callable[[Session], Result]) -> Result:
        with lent(self._route_engine) as session:
            return function(session)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Session]:
        """Yield a session with one consistent view, for as long as a coroutine needs it."""
        await self._threads.acquire()
        try:
            async with for_coroutine(self._route_engine) as session:
                yield session
        finally:
            self._threads.release()

    def settled(self, column: InstrumentedAttribute[int]) -> int:
        """Return the newest id up to which a session that opens from now on sees every row."""
        with self.session() as session:
            return self._settled.ask(session, column)

    async def look(self) -> None:
        """Check for /health that routes and other code can read without waiting for others.

        Raises:
            Degraded: Something keeps all sessions of `read`, or all of the routes' threads.
        """
        assert isinstance(self.engine.pool, QueuePool)
        if self._taken() >= self.engine.pool.size():
            raise Degraded("every session outside of routes is taken: something keeps them")
        try:
            with anyio.fail_after(READERS_WAIT):
                await self._threads.run(lambda: None)
        except TimeoutError:
            raise Degraded("routes have to wait until they can read") from None

    def end_abandoned(self) -> None:
        """End the sessions of generators whose clients have left.

        Only the error that has cancelled such a generator refers to it. The two form a reference
        cycle, which Python's collector would find after minutes.
        """
        if (self._taken() or self._threads.taken) and not self._collecting:
            self._collecting = True
            asyncio.get_running_loop().call_later(COLLECT_AFTER, self._collect)

    def _collect(self) -> None:
        self._collecting = False
        gc.collect()

    def _taken(self) -> int:
        """Return how many sessions outside of routes are open."""
        assert isinstance(self.engine.pool, QueuePool)
        return self.engine.pool.checkedout()

    def close(self) -> None:
        """End the threads and close the connections."""
        self._threads.close()
        self.engine.dispose()
        self._route_engine.dispose()


class Writers:
    """Sessions that write, several at a time."""

    def __init__(self, settings: PostgreSQLSettings) -> None:
        size = settings.database_connections // 2
        self.engine = make_engine(settings, Connection, size)
        self._threads = threads.Threads("database-writer", size)
        self._gate = Gate()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a session for code outside of the server, and commit it at the end.

        Raises:
            DatabaseBusyError: It lost against another transaction.
        """
        with lent(self.engine) as session, session.begin():
            yield session

    async def run(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a session in a thread and commit it, again if it has lost.

        Raises:
            DatabaseBusyError: It has lost every time until BUSY_TIMEOUT was over.
        """
        deadline = time.monotonic() + threads.BUSY_TIMEOUT
        return await self._threads.run(lambda: self._write(function, deadline))

    def _write(self, function: Callable[[Session], Result], deadline: float) -> Result:
        losses, cuts, pause = 0, 0, PAUSE
        while True:
            with self._gate.passed(alone=losses >= LOSSES, deadline=deadline):
                try:
                    return self._attempt(function)
                except LostError as lost:
                    if time.monotonic() > deadline:
                        raise DatabaseBusyError from lost
                    losses += 1
                except CutError as cut:
                    if cuts:
                        raise cut.cause from None
                    cuts = 1
                    continue
            # The others need the time, and no transaction is open meanwhile
            time.sleep(pause * random.random())  # noqa: S311, no secret
            pause = min(2 * pause, LONGEST_PAUSE)

    def _attempt(self, function: Callable[[Session], Result]) -> Result:
        """Call the function with a session of its own, and commit.

        Raises:
            LostError: It lost against another transaction, and nothing of it is stored.
            CutError: The connection was cut, and nothing of it is stored.
        """
        with lent(self.engine) as session:
            # It is taken now, because a connection that was cut is no longer the session's
            bind: Any = session.get_bind()
            driver: Connection = bind.connection.dbapi_connection
            try:
                result = function(session)
                session.commit()
            except BaseException as error:
                if driver.committed:
                    raise
                # The function may have raised another error because of it
                if driver.conflicted or isinstance(error, ConflictError):
                    raise LostError from error
                if isinstance(error, DatabaseUnavailableError) and errors.is_lost(error.orig):
                    raise CutError(error) from error
                raise
        return result

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Session]:
        """Yield a session for as long as a coroutine needs it, and commit it at the end.

        Raises:
            DatabaseBusyError: It lost against another transaction. Nobody can run a coroutine
                again.
        """
        await self._threads.acquire()
        try:
            async with for_coroutine(self.engine) as session:
                yield session
                await run_sync(session.commit, limiter=anyio.CapacityLimiter(1))
        finally:
            self._threads.release()

    def close(self) -> None:
        """End the threads and close the connections."""
        self._threads.close()
        self.engine.dispose()


class LostError(Exception):
    """Error of a try that lost against another transaction, and can be made again."""


class CutError(Exception):
    """Error of a try whose connection was cut before its commit."""

    def __init__(self, cause: DatabaseUnavailableError) -> None:
        super().__init__()
        self.cause = cause


class Gate:
    """Gate that many transactions pass together, or a single one alone.

    A long transaction loses against each short one that commits meanwhile, for ever if they do not
    stop coming.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def passed(self, *, alone: bool, deadline: float) -> Iterator[None]:
        """Wait for the way to be free.

        Raises:
            DatabaseBusyError: It was not free before the deadline.
        """
        with self._changed:
            self._wait(lambda: not self._closed, deadline)
            if alone:
                self._closed = True
                try:
                    self._wait(lambda: not self._inside, deadline)
                except DatabaseBusyError:
                    self._open()
                    raise
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if alone:
                    self._open()
                elif self._closed:
                    self._changed.notify_all()

    def _wait(self, free: Callable[[], bool], deadline: float) -> None:
        if not self._changed.wait_for(free, deadline - time.monotonic()):
            raise DatabaseBusyError

    def _open(self) -> None:
        self._closed = False
        self._changed.notify_all()
