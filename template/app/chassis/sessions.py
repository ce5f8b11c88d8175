# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Sessions that end with their route or with their `with` block, and who lends them.

A session of SQLAlchemy begins anew when it is used after its end. A response that reads on would
then take a connection that nobody gives back, or one that somebody else is working with.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    suppress,
)
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar
from weakref import finalize

from sqlalchemy import Connection, Engine, exc
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.orm.exc import DetachedInstanceError

Result = TypeVar("Result")

RIGHT_WAY: Final = (
    "The session ended with its route or `with` block. Read what is needed before that, or open a "
    "session where it is used: `with database.read() as session` inside the generator or task, or "
    "`await database.run_reading(function)` (run_writing to write), where database is "
    "request.app.state.database."
)


class DatabaseBusyError(Exception):
    """Error raised when the turn to read or to write did not come in time."""


class DatabaseUnavailableError(exc.OperationalError):
    """Error of the database itself, such as a missing file or a full disk, not of a statement."""


class SessionEndedError(exc.InvalidRequestError):
    """Error for the use of a session, or of a result of one, after its end."""

    def __init__(self) -> None:
        super().__init__(RIGHT_WAY)


class LentSession(Session):
    """Session with at most one connection, which its lender ends for good.

    Its close method only resets it, as in SQLAlchemy.
    """

    options: Mapping[str, float] = MappingProxyType({})
    _connection: Connection | None = None
    _finalizer: "finalize[[Connection], LentSession]"

    def get_bind(self, *_: object, bind: Any = None, **__: object) -> Any:
        """Return the session's one connection, and take it from the pool on first use."""
        if bind is not None:
            return bind
        if not isinstance(self.bind, Engine):
            return self.bind
        if self._connection is None:
            self._connection = connect(self.bind).execution_options(**self.options)
            self._finalizer = finalize(self, throw_away, self._connection)
            self._finalizer.atexit = False
        return self._connection

    def close(self) -> None:
        """Give the connection back without uncommitted changes. After the end, do nothing."""
        if type(self) is not EndedSession:
            super().close()
            self._give_back()

    def end(self) -> None:
        """Close the session, and refuse all later use of it and of its results."""
        connection = self._connection or self.bind
        if isinstance(connection, Connection) and not (connection.closed or connection.invalidated):
            driver: Any = connection.connection.dbapi_connection
            if hasattr(driver, "end_cursors"):  # The results of other drivers need no connection
                driver.end_cursors()
        # A thread of the route may be about to use the session, and is refused from now on
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
    """Session that ends with its `with` block."""

    def __exit__(self, *error: object) -> None:
        self.end()


class EndedSession(LentSession):
    """Session after its end. All use is an error, except to close it or roll it back."""

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


class Lender(Protocol):
    """Part of an engine that lends sessions.

    `session` is for a `with` block outside of a route, `run` calls a function with a session, both
    in one thread, and `lend` is for as long as a coroutine needs the session.
    """

    engine: Engine

    def session(self) -> AbstractContextManager[Session]: ...
    async def run(self, function: Callable[[Session], Result]) -> Result: ...
    def lend(self) -> AbstractAsyncContextManager[Session]: ...
    def close(self) -> None: ...


class ReadingLender(Lender, Protocol):
    """Part that lends sessions to read, and can end those of streams whose clients have left."""

    def session(self) -> BlockSession: ...
    def settled(self, column: InstrumentedAttribute[int]) -> int: ...
    def end_abandoned(self) -> None: ...


def connect(engine: Engine) -> Connection:
    """Take a connection from the engine's pool.

    Raises:
        DatabaseBusyError: Others have kept all of them for too long.
        DatabaseUnavailableError: Even a new one is cut off at once.
    """
    try:
        return engine.connect()
    except exc.TimeoutError as error:
        raise DatabaseBusyError from error
    except exc.InvalidRequestError as error:  # The pool gives up after two of them
        raise DatabaseUnavailableError(None, None, error) from error


def throw_away(connection: Connection) -> None:
    """Close the connection of a session that has become garbage before its end.

    Its open results become garbage at the same moment, in no known order. So nobody else gets this
    connection.
    """
    connection.invalidate()
    connection.close()


@contextmanager
def lent(bind: Engine | Connection, **options: float) -> Iterator[Session]:
    """Open a session, which ends with the block. In a transaction it has a savepoint of its own.

    Args:
        bind: The connection, or the engine, which is asked for one at the first use.
        options: SQLAlchemy's options for that connection.
    """
    session = LentSession(bind, expire_on_commit=False, join_transaction_mode="create_savepoint")
    session.options = options
    try:
        yield session
    finally:
        session.end()


def add_right_way(error: BaseException) -> None:
    """Add advice to SQLAlchemy's errors about what an ended session has left behind."""
    if isinstance(error, DetachedInstanceError | exc.ResourceClosedError):
        error.add_note(RIGHT_WAY)
