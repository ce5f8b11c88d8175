# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Sessions that end: with their route, or with their `with` block.

SQLAlchemy's own begins anew when it is used after its end. A response that goes on reading then
takes a connection that nobody gives back, or one that is in the middle of somebody else's work.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any, Final, TypeGuard
from weakref import WeakSet, finalize

from sqlalchemy import Connection, Engine, ExceptionContext, exc
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import DetachedInstanceError

from app.chassis.sqlite import sqlite3

RIGHT_WAY: Final = (
    "The session ended with its route or `with` block. Read what is needed before that, or open a "
    "session where it is used: `with database.read() as session` inside the generator or task, or "
    "`await database.run_reading(function)` (run_writing to write), where database is "
    "request.app.state.database."
)

ENDED: Final = {"Cannot operate on a closed cursor.", "interrupted"}
"""SQLite's words to whoever reads a result after its end; nothing else interrupts it."""


class SessionEndedError(exc.InvalidRequestError):
    """A session, or a result of one, was used after its end."""

    def __init__(self) -> None:
        super().__init__(RIGHT_WAY)


class LentSession(Session):
    """A session with at most one connection, whose lender ends it for good.

    To close it only resets it, as SQLAlchemy has it.
    """

    _connection: Connection | None = None
    _finalizer: "finalize[[Connection], LentSession]"

    def get_bind(self, *_: object, bind: Any = None, **__: object) -> Any:
        """Return the session's one connection, taken from the pool when it is first needed."""
        if bind is not None:
            return bind
        if not isinstance(self.bind, Engine):
            return self.bind
        if self._connection is None:
            self._connection = self.bind.connect()
            self._finalizer = finalize(self, throw_away, self._connection)
            self._finalizer.atexit = False
        return self._connection

    def close(self) -> None:
        """Give the connection back, without what is not committed; after the end do nothing."""
        if type(self) is not EndedSession:
            super().close()
            self._give_back()

    def end(self) -> None:
        """Close the session and refuse all later use of it, and of its results."""
        connection = self._connection or self.bind
        if is_usable(connection):
            driver: Any = connection.connection.dbapi_connection
            driver.end_cursors()
        # a thread of the route's may be about to use it, and is refused from now on
        with suppress(exc.IllegalStateChangeError):
            super().close()
        give_back = self._give_back
        self.__class__ = EndedSession
        give_back()

    def _give_back(self) -> None:
        connection = self.__dict__.pop("_connection", None)
        if connection is not None:
            self.__dict__.pop("_finalizer").detach()
            connection.close()


class BlockSession(LentSession):
    """A session that ends with its `with` block."""

    def __exit__(self, *error: object) -> None:
        self.end()


class EndedSession(LentSession):
    """What a session has become after its end: all use is an error, to tidy up is none."""

    def __getattribute__(self, name: str) -> Any:
        if name in {"close", "rollback", "__dict__", "__class__"}:
            return super().__getattribute__(name)
        raise SessionEndedError

    def __enter__(self) -> Any:
        raise SessionEndedError

    def __contains__(self, _: object) -> bool:
        raise SessionEndedError

    def __iter__(self) -> Iterator[object]:
        raise SessionEndedError

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def rollback(self) -> None:
        """Do nothing."""


def is_usable(connection: Any) -> TypeGuard[Connection]:
    return (
        isinstance(connection, Connection) and not connection.closed and not connection.invalidated
    )


def throw_away(connection: Connection) -> None:
    """Close the connection of a session that has become garbage before its end.

    What it has open becomes garbage in the same moment, and in no known order, so nobody else is
    given this connection.
    """
    connection.invalidate()
    connection.close()


@contextmanager
def lent(session: LentSession) -> Iterator[Session]:
    """End the session with the block."""
    try:
        yield session
    finally:
        session.end()


class Cursor(sqlite3.Cursor):
    """A cursor that keeps to its connection's lock.

    To end what another thread is just reading would crash the process.
    """

    connection: "CursorKeeper"

    def execute(self, *arguments: Any) -> Any:
        with self.connection.lock:
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        with self.connection.lock:
            return super().executemany(*arguments)

    def fetchone(self) -> Any:
        with self.connection.lock:
            return super().fetchone()

    def fetchmany(self, *arguments: Any) -> Any:
        with self.connection.lock:
            return super().fetchmany(*arguments)

    def fetchall(self) -> Any:
        with self.connection.lock:
            return super().fetchall()


class CursorKeeper(sqlite3.Connection):
    """A connection that can end what is still being read from it.

    A result that is read after its session's end keeps the connection at an old state of the
    database, for whoever has it next.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lock = RLock()
        self._cursors: WeakSet[Cursor] = WeakSet()

    def cursor(self, *_: object) -> Any:
        """Open a cursor, and remember it while anybody else does."""
        cursor = super().cursor(Cursor)
        self._cursors.add(cursor)
        return cursor

    def end_cursors(self) -> None:
        """Close every cursor that is still open, and interrupt the one that is at work."""
        if not self.lock.acquire(blocking=False):
            self.interrupt()
            self.lock.acquire()
        try:
            for cursor in list(self._cursors):
                cursor.close()
        finally:
            self.lock.release()

    def commit(self) -> None:
        with self.lock:
            super().commit()

    def rollback(self) -> None:
        with self.lock:
            super().rollback()

    def close(self) -> None:
        with self.lock:
            super().close()


def take_back(connection: Any, _: object = None) -> None:
    """End what is open on a connection that goes back to its pool, unless it has been given up."""
    if connection is not None:
        connection.end_cursors()
        # a refused COMMIT, as of a deferred foreign key, leaves SQLite's transaction open
        if connection.in_transaction:
            connection.rollback()


def explain(context: ExceptionContext) -> None:
    """Raise the error that says why a cursor has been closed, or interrupted."""
    if str(context.original_exception) in ENDED:
        raise SessionEndedError from context.original_exception


def add_right_way(error: BaseException) -> None:
    """Add to SQLAlchemy's errors about what an ended session has left behind what to do instead."""
    if isinstance(error, DetachedInstanceError | exc.ResourceClosedError):
        error.add_note(RIGHT_WAY)
