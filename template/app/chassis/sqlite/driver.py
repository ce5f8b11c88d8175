# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""SQLite driver, and connections that never create a database by accident."""

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

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

__all__ = ["MAGIC", "open_database", "sqlite3"]

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
