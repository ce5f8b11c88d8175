# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""SQLite behind SQLAlchemy, with many readers and one writer on one file.

Sessions are synchronous and belong in `def` routes, which run in threads. SQLite has no
network to wait for, and this is faster than an asynchronous driver. A route asks for
`Reader` or `Writer`, so its signature says what it may do. See app/chassis/routing.py.
The engine is in app/chassis/sqlite.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, TypeVar

from fastapi import Depends
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection

from app.chassis.sqlite.file import DatabaseBusyError as DatabaseBusyError
from app.chassis.sqlite.file import DatabaseFile
from app.chassis.sqlite.file import DatabaseUnavailableError as DatabaseUnavailableError
from app.chassis.sqlite.readers import Readers
from app.chassis.sqlite.writer import SingleWriter

Result = TypeVar("Result")

TOO_LONG: Final = (
    "A WebSocket lasts too long for a Reader or Writer. Read where it is needed: `await "
    "database.run_reading(function)` (run_writing to write), where database is "
    "websocket.app.state.database."
)


class Database:
    """Readers and the writer of one file.

    All four ways to a session raise DatabaseBusyError if others took longer than 5 s,
    and DatabaseUnavailableError if the file is missing, full or damaged.

    Args:
        path: The database file, which has to exist.
        synchronous: SQLite's `synchronous`. FULL keeps every commit in a power cut, and NORMAL
            may lose the last ones.
    """

    def __init__(self, path: Path, synchronous: str = "FULL") -> None:
        self.path = path
        self._file = DatabaseFile(path)
        self._readers = Readers(self._file)
        self._writer = SingleWriter(self._file, synchronous)

    def read(self) -> Session:
        """Return a reading session for a `with` block outside of a route, such as in a stream."""
        return self._readers.session()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a writing session for code outside of the server, and commit it at the end.

        In the server use `run_writing`, because routes cannot have a thread that waits here.
        """
        with self._writer.session() as session:
            yield session

    async def run_reading(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a reading session, both in one thread."""
        return await self._readers.run(function)

    async def run_writing(self, function: Callable[[Session], Result]) -> Result:
        """Call a function with a writing session and commit it, all in one thread.

        Functions that wait for the writer share a transaction, and so the wait for the disk. Each
        one has a savepoint of its own, and gets its result when all are committed.
        """
        return await self._writer.run(function)

    def dispose(self) -> None:
        """Close the threads, the connections and the file."""
        self._readers.close()
        self._writer.close()
        self._file.close()


def get_database(request: HTTPConnection) -> Database:
    """Return the application's database, as a dependency of a route."""
    database: Database = request.app.state.database
    return database


async def get_reader(request: HTTPConnection) -> AsyncIterator[Session]:
    """Yield the session of a `Reader`."""
    require_short(request)
    async with get_database(request)._readers.lend() as session:
        yield session


async def get_writer(request: HTTPConnection) -> AsyncIterator[Session]:
    """Yield the session of a `Writer`, which is committed before the answer."""
    require_short(request)
    async with get_database(request)._writer.lend() as session:
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
