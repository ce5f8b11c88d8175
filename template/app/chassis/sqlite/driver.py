# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""SQLite driver, and connections that never create a database by accident."""

from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from weakref import WeakSet

if TYPE_CHECKING:
    import sqlite3
else:
    # This is the same interface with a newer SQLite, where a wheel exists. It ships no types.
    # SQLite before 3.51.3 can corrupt a WAL database that two processes checkpoint
    # at once (https://sqlite.org/wal.html).
    try:
        from pysqlite3 import dbapi2 as sqlite3
    except ImportError:
        import sqlite3

__all__ = ["MAGIC", "CursorKeeper", "open_database", "sqlite3"]

MAGIC: Final = b"SQLite format 3\0"
"""First bytes of every database file (https://sqlite.org/fileformat.html)."""


def open_database(
    path: Path,
    *,
    create: bool = False,
    busy_timeout: float = 5.0,
    factory: type[sqlite3.Connection] = sqlite3.Connection,
) -> sqlite3.Connection:
    """Open the database in autocommit mode, usable from any thread.

    Args:
        path: The database file.
        create: True to create a missing file. Otherwise a missing file is an error, because
            SQLite would quietly start an empty database wherever a volume is not mounted.
        busy_timeout: Seconds to wait for another connection's lock.
        factory: The connection's class.

    Raises:
        sqlite3.OperationalError: The file is missing or cannot be opened.
    """
    mode = "rwc" if create else "rw"
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,
        factory=factory,
    )


class Cursor(sqlite3.Cursor):
    """Cursor that takes its connection's lock.

    The process would crash if a cursor were closed while another thread reads from it.
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
    """Connection that can close the cursors that are still read from.

    A result that is read after its session's end keeps the connection at an old state of the
    database. The next user of the connection would see that state.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lock = RLock()
        self._cursors: WeakSet[Cursor] = WeakSet()

    def cursor(self, *_: object) -> Any:
        """Open a cursor, and remember it as long as anybody else does."""
        cursor = super().cursor(Cursor)
        self._cursors.add(cursor)
        return cursor

    def end_cursors(self) -> None:
        """Close every open cursor, and interrupt the one that is at work."""
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
