# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""SQLite behind SQLAlchemy, with many readers and one writer on one file.

Sessions are synchronous and belong in `def` routes, which run in threads. SQLite has no
network to wait for, and this is faster than an asynchronous driver. A route asks for
`Reader` or `Writer`, so its signature says what it may do. See app/chassis/routing.py.
"""

import asyncio
import errno
import gc
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import anyio
import anyio.to_thread
from fastapi import Depends
from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry
from starlette.requests import HTTPConnection

from app.chassis.sessions import (
    BlockSession,
    CursorKeeper,
    LentSession,
    explain,
    lent,
    take_back,
)
from app.chassis.sqlite.driver import MAGIC, open_database, sqlite3
from app.chassis.threads import Threads, Work, call_each
from app.chassis.times import STORED
from app.chassis.verdict import Degraded

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

READERS: Final = 4
"""Maximum number of routes that read at the same time.

More do not read faster, and leave the writer less of the CPU. Routes that are not a DatabaseRoute
may have as many connections again. Code outside of a route, such as a stream, may have twice as
many, and takes none from the routes.
"""

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for the write lock, in this process and between processes."""

READERS_WAIT: Final = 2.0
"""Seconds that a route may wait to read before /health reports it."""

COLLECT_AFTER: Final = 0.1
"""Seconds to wait for other clients that also leave, before the garbage collector runs."""

GROUP: Final = 64
"""Maximum number of routes that write in one transaction."""

GROUP_SECONDS: Final = 0.02
"""Seconds after which such a transaction takes no more routes. Its routes wait for the commit."""

WRITER_POLL: Final = 0.005
"""Seconds that SQLite itself waits for the write lock before this module tries again."""

HAS_DEFERRED: Final = "SELECT 1 FROM sqlite_master WHERE sql LIKE '%INITIALLY DEFERRED%'"
"""Query that finds foreign keys that SQLite checks only at the commit."""

JOURNAL_SIZE_LIMIT: Final = 64 * 1024 * 1024


class DatabaseBusyError(Exception):
    """Error raised when the turn to read or the write lock did not come within BUSY_TIMEOUT."""


class DatabaseFile:
    """File that this process has started with, and the checks that it is still in its place.

    An open connection outlives its file, and what it writes after a delete is lost. A new
    connection harms the file that it finds. SQLite deletes the write-ahead log of an empty file,
    and replays the log into any other file that has taken the database's name. So this file is
    checked before both.

    Args:
        path: The database file. If it is missing, the first one to appear counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path.with_name(f"{path.name}-wal")
        self._log_identity: tuple[int, int] | None = None
        # It stays open until the connections are closed, because closing it gives up their
        # locks (fcntl(2))
        self._descriptor: int | None = None
        self.fault()

    def fault(self) -> str | None:
        """Return what is wrong with the file, in words that clients may see, or None."""
        try:
            found = os.stat(self.path)
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            if not os.path.samestat(found, os.fstat(self._descriptor)):
                return "the database file was replaced"
            if found.st_size == 0:
                return "the database file is empty"
            if os.pread(self._descriptor, len(MAGIC), 0) != MAGIC:
                return "the file is not a database"
            if self._log_identity and identity(self.log) != self._log_identity:
                return "the database's write-ahead log was deleted"
        except FileNotFoundError:
            return "the database file is missing"
        except OSError:
            return "the database file cannot be read"
        return None

    def require(self) -> None:
        """Refuse to go on without the file.

        Raises:
            sqlalchemy.exc.OperationalError: The file is not what it was.
        """
        self.refuse(self.fault())

    def require_written(self) -> None:
        """Refuse to call a commit a success if it cannot be one.

        A file system that turned read-only during the commit may have synced nothing without an
        error. On ext4, fsync(2) has nothing more to do then.

        Raises:
            sqlalchemy.exc.OperationalError: The file is not what it was, or cannot be written.
        """
        self.require()
        try:
            flags = os.statvfs(self.path).f_flag
        except OSError:
            self.refuse("the database file cannot be read")
        else:
            self.refuse("the database is read-only" if flags & os.ST_RDONLY else None)

    @staticmethod
    def refuse(fault: str | None) -> None:
        if fault:
            error = sqlite3.OperationalError(fault)
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise exc.OperationalError(None, None, error)

    def hold_to_log(self) -> None:
        """Remember the log that the writer has open. Whoever deletes it now deletes commits.

        A stop of the service saves the commits, because the last connection that closes writes
        them to the database.
        """
        self._log_identity = self._log_identity or identity(self.log)

    def let_go_of_log(self) -> None:
        """Forget the log, because the writer is closed and may delete it."""
        self._log_identity = None

    def is_read_only(self) -> bool:
        """Return whether the file's permissions or the file system refuse writes.

        SQLite's BEGIN IMMEDIATE does not show this, because it writes nothing to the disk. A new
        connection can get the descriptor of an older one that was opened before the fault.
        """
        try:
            with tempfile.TemporaryFile(dir=self.path.parent):
                return not os.access(self.path, os.W_OK)
        except OSError as error:
            return error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}

    def close(self) -> None:
        """Close the file. The connections have to be closed before it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
"""Result codes about the file, not about the statement (https://sqlite.org/rescode.html)."""


class Database:
    """Engines for reading and writing on one file, and their sessions.

    Args:
        path: The database file, which has to exist.
        synchronous: SQLite's `synchronous`. FULL keeps every commit in a power cut, and NORMAL
            may lose the last ones.
    """

    def __init__(self, path: Path, synchronous: str = "FULL") -> None:
        self.path = path
        self.file = DatabaseFile(path)
        # Code outside of a route, such as a stream, must not take a connection from the routes
        self.reader_engine = reader_engine(self.file)
        self._route_engine = reader_engine(self.file)
        self.writer_engine = writer_engine(self.file, synchronous)
        self.read = sessionmaker(self.reader_engine, class_=BlockSession, expire_on_commit=False)
        self._lend = sessionmaker(class_=LentSession, expire_on_commit=False)
        self._readers = Threads("database-reader", DatabaseBusyError, most=READERS)
        self._writer = Threads(
            "database-writer", DatabaseBusyError, do=self._write_together, at_once=GROUP
        )
        self._open_readers = anyio.Semaphore(READERS, fast_acquire=True)
        self._writer_options = lru_cache(self.writer_engine.execution_options)
        self._commits = anyio.CapacityLimiter(1)
        self._collecting = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a writing session for code outside of the server, and commit it at the end.

        In the server use `run_writing`, because routes cannot have a thread that waits here.
        """
        with lent(self._lend(bind=self.writer_engine)) as session, session.begin():
            yield session
        self.file.require_written()

    async def run_reading(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a reading session, both in one thread.

        Raises:
            DatabaseBusyError: Other readers took longer than BUSY_TIMEOUT.
        """

        def read(_: float) -> Result:
            with lent(self._lend(bind=self._route_engine)) as session:
                return function(session)

        return await self._readers.run(read, BUSY_TIMEOUT)

    async def run_writing(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a writing session and commit it, all in one thread.

        Functions that wait for the writer share a transaction, and so the wait for the disk. Each
        one has a savepoint of its own, and gets its result when all are committed.

        Raises:
            DatabaseBusyError: Other writers took longer than BUSY_TIMEOUT.
        """

        def write(bind: Engine | Connection) -> Result:
            made = self._lend(bind=bind, join_transaction_mode="create_savepoint")
            with lent(made) as session:
                result = function(session)
                session.commit()
            return result

        return await self._writer.run(write, BUSY_TIMEOUT, groups=True)

    def _write_together(self, works: Sequence[Work[Any]]) -> None:
        """Do the works in as few transactions as possible. This runs in the writer's thread."""
        if not works[0].groups:
            call_each(works)
            return
        while works:
            works = works[self._transact(works) :]

    def _transact(self, works: Sequence[Work[Any]]) -> int:
        """Run one transaction with the first works, and return how many it settles (1 or more)."""
        begun = 0
        # The wait for the turn counts for the lock too, and the first has waited the longest
        engine = self._writer_waiting(works[0].left)
        try:
            if len(works) == 1:
                begun = 1
                works[0].call(engine)
            else:
                with engine.connect() as connection, connection.begin():
                    until = time.monotonic() + GROUP_SECONDS
                    if connection.exec_driver_sql(HAS_DEFERRED).first():
                        until = 0.0  # The commit would refuse all works for the rows of one
                    while begun < len(works) and (not begun or time.monotonic() < until):
                        work = works[begun]
                        begun += 1
                        work.call(connection)
                        if not in_transaction(connection):
                            # SQLite has undone everything, as on a full disk
                            work.error = cause(work.error)
                            raise work.error
            self.file.require_written()
        except Exception as error:
            # Nothing of these works is in the database. Without a lock only the first one fails,
            # because the others may still get it
            begun = max(begun, 1)
            if begun > 1 and isinstance(error, exc.IntegrityError):
                # One of them has deferred its foreign keys, and nobody knows which one
                error = DatabaseBusyError()
            for work in works[:begun]:
                work.error = work.error or error
        return begun

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        """Yield a reading session with one consistent view, for as long as a coroutine needs it.

        Raises:
            DatabaseBusyError: Other readers took longer than BUSY_TIMEOUT.
        """
        try:
            with anyio.fail_after(BUSY_TIMEOUT):
                await self._open_readers.acquire()
        except TimeoutError:
            raise DatabaseBusyError from None
        try:
            # Nothing here waits, because a session connects at its first statement, and the end
            # of a read transaction touches no disk
            with lent(self._lend(bind=self._route_engine)) as session:
                yield session
        finally:
            self._open_readers.release()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Session]:
        """Yield a writing session for as long as a coroutine needs it, and commit it at the end.

        Raises:
            DatabaseBusyError: Other writers took longer than BUSY_TIMEOUT.
        """
        async with self._writer.held(BUSY_TIMEOUT) as left:
            with lent(self._lend(bind=self._writer_waiting(left))) as session:
                yield session
                await anyio.to_thread.run_sync(session.commit, limiter=self._commits)
            self.file.require_written()

    async def look_at_readers(self) -> None:
        """Check for /health that routes and other code can read without waiting for others.

        Raises:
            Degraded: Something keeps all sessions of `read`, or all of the routes' threads.
        """
        if checked_out(self.reader_engine) >= 2 * READERS:
            raise Degraded("every session outside of routes is taken: something keeps them")
        try:
            with anyio.fail_after(READERS_WAIT):
                await self.run_reading(lambda _: None)
        except TimeoutError:
            raise Degraded("routes have to wait until they can read") from None

    def end_abandoned(self) -> None:
        """End the sessions of generators whose clients have left.

        Only the error that has cancelled such a generator refers to it. The two form a reference
        cycle, which Python's collector would find after minutes.
        """
        open_sessions = checked_out(self.reader_engine) or self._open_readers.value < READERS
        if open_sessions and not self._collecting:
            self._collecting = True
            asyncio.get_running_loop().call_later(COLLECT_AFTER, self._collect)

    def _collect(self) -> None:
        self._collecting = False
        gc.collect()

    def _writer_waiting(self, seconds: float) -> Engine:
        """Return the writer's engine with this timeout for the lock."""
        return self._writer_options(busy_timeout=round(seconds, 1))

    def dispose(self) -> None:
        """Close the threads, the pooled connections and the file."""
        self._readers.close()
        self._writer.close()
        for engine in (self.reader_engine, self._route_engine, self.writer_engine):
            engine.dispose()
        self.file.close()


def reader_engine(file: DatabaseFile) -> Engine:
    """Return an engine whose connections see one consistent state each, and refuse to write."""
    pragmas = {"foreign_keys": "ON", "query_only": "ON"}
    return make_engine(
        file, "BEGIN", pragmas, size=READERS, overflow=READERS, busy_timeout=BUSY_TIMEOUT
    )


def writer_engine(file: DatabaseFile, synchronous: str = "FULL") -> Engine:
    """Return the engine of the one connection that writes."""
    pragmas = {
        "foreign_keys": "ON",
        "synchronous": synchronous,
        "journal_size_limit": str(JOURNAL_SIZE_LIMIT),
    }
    engine = make_engine(file, "BEGIN IMMEDIATE", pragmas, size=1, busy_timeout=WRITER_POLL)
    event.listen(engine, "begin", lambda _: file.hold_to_log())
    event.listen(engine, "close", lambda *_: file.let_go_of_log())
    return engine


def migration_engine(file: DatabaseFile) -> Engine:
    """Return an engine whose connection may change the schema."""
    pragmas = {"foreign_keys": "OFF"}
    return make_engine(file, "BEGIN IMMEDIATE", pragmas, size=1, busy_timeout=WRITER_POLL)


def make_engine(
    file: DatabaseFile,
    begin: str,
    pragmas: Mapping[str, str],
    *,
    size: int,
    busy_timeout: float,
    overflow: int = 0,
) -> Engine:
    """Return an engine whose transactions start with the given statement.

    The driver's own transactions begin only at the first write. Two read-modify-writes
    can then both read before either writes, and one update is lost.
    """

    def connect() -> sqlite3.Connection:
        file.require()
        return open_database(file.path, busy_timeout=busy_timeout, factory=CursorKeeper)

    engine = create_engine(
        "sqlite://",
        module=sqlite3,
        creator=connect,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=overflow,
        pool_timeout=BUSY_TIMEOUT,
    )
    engine.dialect.colspecs = {**engine.dialect.colspecs, **STORED}

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        file.require()  # SQLite has opened the file that is there now, and not read it yet
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name}={value}")
        cursor.close()

    event.listen(engine, "checkin", take_back)
    event.listen(engine, "handle_error", explain)

    @event.listens_for(engine, "begin")
    def send_begin(connection: Connection) -> None:
        file.require()
        begin_when_free(connection, begin)

    return engine


def begin_when_free(connection: Connection, statement: str) -> None:
    """Start a transaction, trying again while another process holds the write lock.

    SQLite's own wait backs off up to 0.1 s a try. With several processes, one of them then
    waits for seconds. Short tries keep the wait near the length of a transaction.

    Raises:
        DatabaseBusyError: The lock was not free within BUSY_TIMEOUT.
        sqlalchemy.exc.OperationalError: The database cannot be used at all.
    """
    cursor = connection.connection.cursor()
    timeout = connection.get_execution_options().get("busy_timeout", BUSY_TIMEOUT)
    deadline = time.monotonic() + timeout
    while True:
        try:
            cursor.execute(statement)
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise exc.OperationalError(statement, None, error) from error
            if time.monotonic() > deadline:
                raise DatabaseBusyError from error
        except sqlite3.DatabaseError as error:
            raise exc.DatabaseError(statement, None, error) from error
        time.sleep(0.001)
    cursor.close()


def in_transaction(connection: Connection) -> bool:
    """Return whether SQLite is in a transaction, whatever SQLAlchemy believes."""
    driver: Any = connection.connection.dbapi_connection
    return bool(driver.in_transaction)


def cause(error: BaseException | None) -> BaseException:
    """Return why SQLite undid a transaction. Later errors only say that there is none any more."""
    earlier = error
    while earlier is not None:
        if isinstance(earlier, exc.DBAPIError) and is_unavailable(earlier):
            return earlier
        earlier = earlier.__context__
    return error or RuntimeError("A route has ended the transaction that it shares")


def checked_out(engine: Engine) -> int:
    """Return how many connections of the engine are in use."""
    pool: Any = engine.pool
    found: int = pool.checkedout()
    return found


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file, or None if it cannot be found."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_unavailable(error: exc.DBAPIError) -> bool:
    """Return whether the database itself failed, and not only the statement."""
    code: int = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF in UNAVAILABLE


def find_conflict(error: exc.IntegrityError) -> tuple[str, list[str]] | None:
    """Return what a request conflicts with, and the columns if SQLite names them.

    NOT NULL and CHECK depend on nothing that is stored, so the service should have refused a
    request that breaks them. That is the service's error, like a refusal of its own trigger, and
    the result is None.
    """
    text = str(error.orig)
    if text.startswith("FOREIGN KEY constraint failed"):
        return "It refers to something that does not exist, or something refers to it", []
    if not text.startswith("UNIQUE constraint failed"):
        return None
    columns = re.findall(r"\w+\.(\w+)", text)
    same = f"the same {', '.join(columns)}" if columns else "the same values"
    return f"There is one with {same} already", columns


def get_database(request: HTTPConnection) -> Database:
    database: Database = request.app.state.database
    return database


async def get_reader(request: HTTPConnection) -> AsyncIterator[Session]:
    require_short(request)
    async with get_database(request).reading() as session:
        yield session


async def get_writer(request: HTTPConnection) -> AsyncIterator[Session]:
    require_short(request)
    async with get_database(request).writing() as session:
        yield session


def require_short(request: HTTPConnection) -> None:
    """Refuse to lend a session to a WebSocket. It lasts long, and a few would keep all sessions.

    Raises:
        RuntimeError: The request is a WebSocket. The message names the right way.
    """
    if request.scope["type"] == "websocket":
        raise RuntimeError(
            "A WebSocket lasts too long for a Reader or Writer. Read where it is needed: `await "
            "database.run_reading(function)` (run_writing to write), where database is "
            "websocket.app.state.database."
        )


# With "function" the session ends, and a writer's is committed, before the response is sent
Reader = Annotated[Session, Depends(get_reader, scope="function")]
Writer = Annotated[Session, Depends(get_writer, scope="function")]
