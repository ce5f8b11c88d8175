# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Engines of SQLAlchemy, whose transactions begin and fail as SQLite does."""

import re
import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Engine, ExceptionContext, QueuePool, create_engine, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from app.chassis.sessions import DatabaseBusyError, DatabaseUnavailableError, SessionEndedError
from app.chassis.sqlite.driver import CursorKeeper, open_database, sqlite3
from app.chassis.sqlite.file import UNAVAILABLE, DatabaseFile, result_code
from app.chassis.times import keep_in_utc

READERS: Final = 4
"""Maximum number of routes that read at the same time in the database's threads.

Other routes may have 4 more connections. Code outside of a route, such as a stream, has 8 of its
own, and takes none from the routes. More do not read faster, and leave the writer less of the CPU.
"""

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for the write lock, in this process and between processes."""

WRITER_POLL: Final = 0.005
"""Seconds that SQLite itself waits for the write lock before this module tries again."""

JOURNAL_SIZE_LIMIT: Final = 64 * 1024 * 1024

ENDED: Final = {"Cannot operate on a closed cursor.", "interrupted"}
"""Errors of SQLite when a result is read after its end. Nothing else interrupts SQLite."""


def reader_engine(file: DatabaseFile) -> Engine:
    """Return an engine whose connections see one consistent state each, and refuse to write."""
    pragmas = {"foreign_keys": "ON", "query_only": "ON"}
    return make_engine(file, "BEGIN", pragmas, busy_timeout=BUSY_TIMEOUT, size=READERS)


def writer_engine(file: DatabaseFile, synchronous: str = "FULL") -> Engine:
    """Return the engine of the one connection that writes."""
    pragmas = {
        "foreign_keys": "ON",
        "synchronous": synchronous,
        "journal_size_limit": str(JOURNAL_SIZE_LIMIT),
    }
    engine = make_engine(file, "BEGIN IMMEDIATE", pragmas)
    event.listen(engine, "begin", lambda _: file.hold_to_log())
    event.listen(engine, "close", lambda *_: file.let_go_of_log())
    return engine


def migration_engine(file: DatabaseFile) -> Engine:
    """Return an engine whose connection may change the schema."""
    return make_engine(file, "BEGIN IMMEDIATE", {"foreign_keys": "OFF"})


def make_engine(
    file: DatabaseFile,
    begin: str,
    pragmas: Mapping[str, str],
    *,
    busy_timeout: float = WRITER_POLL,
    size: int = 0,
) -> Engine:
    """Return an engine whose transactions start with the given statement.

    The driver's own transactions begin only at the first write. Two read-modify-writes
    can then both read before either writes, and one update is lost.

    Args:
        size: Number of connections to keep, and of further ones that may be open for a while.
            By default there is one connection and no other.
    """

    def connect() -> sqlite3.Connection:
        file.require()
        return open_database(file.path, busy_timeout=busy_timeout, factory=CursorKeeper)

    engine = create_engine(
        "sqlite://",
        module=sqlite3,
        creator=connect,
        poolclass=QueuePool,
        pool_size=size or 1,
        max_overflow=size,
        pool_timeout=BUSY_TIMEOUT,
    )
    keep_in_utc(engine.dialect)

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        file.require()  # SQLite has opened the file that is there now, and not read it yet
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name}={value}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def send_begin(connection: Connection) -> None:
        file.require()
        begin_when_free(connection, begin)

    event.listen(engine, "checkin", take_back)
    event.listen(engine, "handle_error", explain)
    event.listen(engine, "handle_error", tell_unavailable, retval=True)
    return engine


def take_back(connection: Any, _: object = None) -> None:
    """Close what is open on a connection that returns to its pool, unless it has been given up."""
    if connection is not None:
        connection.end_cursors()
        # A refused COMMIT, as for a deferred foreign key, leaves SQLite's transaction open
        if connection.in_transaction:
            connection.rollback()


def explain(context: ExceptionContext) -> None:
    """Raise the error that says why a cursor was closed or interrupted."""
    if str(context.original_exception) in ENDED:
        raise SessionEndedError from context.original_exception


def begin_when_free(connection: Connection, statement: str) -> None:
    """Start a transaction, trying again while another process holds the write lock.

    SQLite's own wait backs off up to 0.1 s a try. With several processes, one of them then
    waits for seconds. Short tries keep the wait near the length of a transaction.

    Raises:
        DatabaseBusyError: The lock was not free within BUSY_TIMEOUT, or within the option
            `busy_timeout` of the connection.
        sqlalchemy.exc.DatabaseError: The transaction cannot be started at all.
    """
    cursor = connection.connection.cursor()
    timeout = connection.get_execution_options().get("busy_timeout", BUSY_TIMEOUT)
    deadline = time.monotonic() + timeout
    while True:
        try:
            cursor.execute(statement)
            break
        except sqlite3.DatabaseError as error:
            if (code := result_code(error)) != sqlite3.SQLITE_BUSY:
                kind = DatabaseUnavailableError if code in UNAVAILABLE else exc.DatabaseError
                raise kind(statement, None, error) from error
            if time.monotonic() > deadline:
                raise DatabaseBusyError from error
        time.sleep(0.001)
    cursor.close()


def tell_unavailable(context: ExceptionContext) -> DatabaseUnavailableError | None:
    """Return the error in the place of SQLAlchemy's, if the database itself has failed."""
    error = context.sqlalchemy_exception
    if isinstance(error, exc.DBAPIError) and error.orig and result_code(error.orig) in UNAVAILABLE:
        return DatabaseUnavailableError(error.statement, error.params, error.orig)
    return None


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
