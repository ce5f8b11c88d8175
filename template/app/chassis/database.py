"""SQLite behind SQLAlchemy: many readers and one writer on one file.

Sessions are synchronous and belong in `def` routes, which FastAPI runs in threads:
SQLite has no network to wait for, and this is faster than an asynchronous driver.
A route asks for `Reader` or `Writer`, so its signature says what it may do.
"""

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Final

import anyio
import anyio.to_thread
from fastapi import Depends, Request
from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from app.chassis.sqlite import open_database, sqlite3

logger = logging.getLogger(__name__)

READERS: Final = 4
"""Routes that read at once: more do not read faster, and leave the writer less of the CPU.

Code that reads outside of a route, as streams do, may have as many connections again.
"""

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for the write lock, in this process and between processes."""

WRITER_POLL: Final = 0.005
"""Seconds that SQLite itself waits for the write lock before this module tries again."""

JOURNAL_SIZE_LIMIT: Final = 64 * 1024 * 1024


class DatabaseBusyError(Exception):
    """The write lock was not free within BUSY_TIMEOUT."""


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
"""Result codes that speak of the file, not of the statement (https://sqlite.org/rescode.html)."""


class Database:
    """The two engines on one file, and their sessions.

    Args:
        path: The database file; it has to exist.
        synchronous: SQLite's `synchronous`: FULL survives a power cut with every commit,
            NORMAL may lose the last ones.
    """

    def __init__(self, path: Path, synchronous: str = "FULL") -> None:
        self.path = path
        self.reader_engine = reader_engine(path)
        self.writer_engine = writer_engine(path, synchronous)
        self.read = sessionmaker(self.reader_engine, expire_on_commit=False)
        self._write = sessionmaker(self.writer_engine, expire_on_commit=False)
        self._readers = anyio.Semaphore(READERS, fast_acquire=True)
        self._writers = anyio.Semaphore(1, fast_acquire=True)
        self._commits = anyio.CapacityLimiter(1)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A writing session for code outside of the server: committed at the end.

        In the server use `writing`: a thread that waits here is one that routes cannot have.
        """
        with self._write.begin() as session:
            yield session

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        """A route's reading session: one consistent view, and writing is refused.

        Raises:
            DatabaseBusyError: Other readers took longer than BUSY_TIMEOUT.
        """
        async with turn(self._readers):
            # Nothing here waits: a session connects at its first statement, and ending a
            # read transaction touches no disk.
            with self.read() as session:
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Session]:
        """A route's writing session, committed when the route returns.

        Raises:
            DatabaseBusyError: Other writers took longer than BUSY_TIMEOUT.
        """
        async with turn(self._writers):
            with self._write() as session:
                yield session
                await anyio.to_thread.run_sync(session.commit, limiter=self._commits)

    def dispose(self) -> None:
        """Close the pooled connections."""
        self.reader_engine.dispose()
        self.writer_engine.dispose()


@asynccontextmanager
async def turn(semaphore: anyio.Semaphore) -> AsyncIterator[None]:
    """Wait for a session in the event loop.

    In threads, those who wait for a connection would keep the threads from those who have
    one and need a thread to finish.
    """
    try:
        with anyio.fail_after(BUSY_TIMEOUT):
            await semaphore.acquire()
    except TimeoutError:
        raise DatabaseBusyError from None
    try:
        yield
    finally:
        semaphore.release()


def reader_engine(path: Path) -> Engine:
    """Connections that see one consistent state each, and refuse to write."""
    pragmas = {"foreign_keys": "ON", "query_only": "ON"}
    return make_engine(
        path, "BEGIN", pragmas, size=READERS, overflow=READERS, busy_timeout=BUSY_TIMEOUT
    )


def writer_engine(path: Path, synchronous: str = "FULL") -> Engine:
    """The one connection that writes."""
    pragmas = {
        "foreign_keys": "ON",
        "synchronous": synchronous,
        "journal_size_limit": str(JOURNAL_SIZE_LIMIT),
    }
    return make_engine(path, "BEGIN IMMEDIATE", pragmas, size=1, busy_timeout=WRITER_POLL)


def migration_engine(path: Path) -> Engine:
    """A connection that may change the schema, and create the file."""
    pragmas = {"foreign_keys": "OFF"}
    return make_engine(
        path, "BEGIN IMMEDIATE", pragmas, size=1, busy_timeout=WRITER_POLL, create=True
    )


def make_engine(
    path: Path,
    begin: str,
    pragmas: Mapping[str, str],
    *,
    size: int,
    busy_timeout: float,
    overflow: int = 0,
    create: bool = False,
) -> Engine:
    """An engine whose transactions start with the given statement.

    The driver's own transactions begin only at the first write: two read-modify-writes
    can then both read before either writes, and one update is lost.
    """
    engine = create_engine(
        "sqlite://",
        module=sqlite3,
        creator=lambda: open_database(path, create=create, busy_timeout=busy_timeout),
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=overflow,
        pool_timeout=BUSY_TIMEOUT,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name}={value}")
        cursor.close()
        entry.info["file"] = identity(path)

    @event.listens_for(engine, "checkout")
    def refuse_replaced_file(
        connection: DBAPIConnection, entry: ConnectionPoolEntry, _proxy: object
    ) -> None:
        # An open connection outlives its file: what it writes after a delete is lost.
        if identity(path) != entry.info["file"]:
            raise exc.DisconnectionError("the database file was replaced")

    @event.listens_for(engine, "begin")
    def send_begin(connection: Connection) -> None:
        begin_when_free(connection, begin)

    return engine


def begin_when_free(connection: Connection, statement: str) -> None:
    """Start a transaction, trying again while another process holds the write lock.

    SQLite's own waiting backs off up to 0.1 s a try; with several processes somebody
    then waits for seconds. Short tries keep the wait near the length of a transaction.

    Raises:
        DatabaseBusyError: The lock was not free within BUSY_TIMEOUT.
        sqlalchemy.exc.OperationalError: The database cannot be used at all.
    """
    cursor = connection.connection.cursor()
    deadline = time.monotonic() + BUSY_TIMEOUT
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


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file, or None without one."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_unavailable(error: exc.DBAPIError) -> bool:
    """Whether the database itself failed, rather than what was asked of it."""
    code: int = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF in UNAVAILABLE


def get_database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def get_reader(request: Request) -> AsyncIterator[Session]:
    async with get_database(request).reading() as session:
        yield session


async def get_writer(request: Request) -> AsyncIterator[Session]:
    async with get_database(request).writing() as session:
        yield session


# "function": the session ends, and a writer's is committed, before the response is sent.
Reader = Annotated[Session, Depends(get_reader, scope="function")]
Writer = Annotated[Session, Depends(get_writer, scope="function")]
