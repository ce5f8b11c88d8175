# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Database behind SQLAlchemy, with sessions that read and sessions that write.

Sessions are synchronous and belong in `def` routes, which run in threads. A route asks for
`Reader` or `Writer`, so its signature says what it may do. See app/chassis/routing.py.
The engine, which lends the sessions, is a package of its own.

On PostgreSQL a route with a `Writer`, and the function of `run_writing`, runs again with a new
session if others have changed what it has read. So whatever must not happen twice, such as
sending mail, comes after `await database.run_writing(function)`, outside of the function.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Annotated, Final, TypeVar

from fastapi import Depends
from sqlalchemy.orm import InstrumentedAttribute, Session
from starlette.requests import HTTPConnection

from app.chassis.sessions import DatabaseBusyError as DatabaseBusyError
from app.chassis.sessions import DatabaseUnavailableError as DatabaseUnavailableError
from app.chassis.sessions import Lender, ReadingLender

Result = TypeVar("Result")

TOO_LONG: Final = (
    "A WebSocket lasts too long for a Reader or Writer. Read where it is needed: `await "
    "database.run_reading(function)` (run_writing to write), where database is "
    "websocket.app.state.database."
)


class Database:
    """Readers and the writer of one database.

    All four ways to a session raise DatabaseBusyError if others took longer than 5 s,
    and DatabaseUnavailableError if the database is missing, full or damaged.

    Args:
        readers: Part of the engine that lends sessions that read.
        writer: Part of the engine that lends sessions that write.
    """

    def __init__(self, readers: ReadingLender, writer: Lender) -> None:
        self.readers = readers
        self.writer = writer

    def read(self) -> Session:
        """Return a reading session for a `with` block outside of a route, such as in a stream."""
        return self.readers.session()

    def write(self) -> AbstractContextManager[Session]:
        """Return a context with a writing session, which is committed at its end.

        It is for code outside of the server. In the server use `run_writing`, because routes cannot
        have a thread that waits here.
        """
        return self.writer.session()

    async def run_reading(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a reading session, both in one thread."""
        return await self.readers.run(function)

    async def run_writing(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a writing session and commit. On PostgreSQL it may run again."""
        return await self.writer.run(function)

    def settled(self, column: InstrumentedAttribute[int]) -> int:
        """Return the newest id up to which a session that opens from now on sees every row.

        With several writers a smaller id may be committed later, so a stream reads only up to this.
        """
        return self.readers.settled(column)

    def dispose(self) -> None:
        """Close the threads and the connections."""
        self.readers.close()
        self.writer.close()


def get_database(request: HTTPConnection) -> Database:
    """Return the application's database, as a dependency of a route."""
    database: Database = request.app.state.database
    return database


async def get_reader(request: HTTPConnection) -> AsyncIterator[Session]:
    """Yield the session of a `Reader`."""
    require_short(request)
    async with get_database(request).readers.lend() as session:
        yield session


async def get_writer(request: HTTPConnection) -> AsyncIterator[Session]:
    """Yield the session of a `Writer`, which is committed before the answer."""
    require_short(request)
    async with get_database(request).writer.lend() as session:
        yield session


def require_short(request: HTTPConnection) -> None:
    """Refuse to lend a session to a WebSocket. It lasts long, and a few would keep all sessions.

    Raises:
        RuntimeError: The request is a WebSocket.
    """
    if request.scope["type"] == "websocket":
        raise RuntimeError(TOO_LONG)


# With "function" the session ends, and a writer's is committed, before the response is sent
Reader = Annotated[Session, Depends(get_reader, scope="function")]
Writer = Annotated[Session, Depends(get_writer, scope="function")]
