# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Database's file, and the faults that it can have."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from app.chassis.sessions import DatabaseUnavailableError
from app.chassis.sqlite.driver import MAGIC, sqlite3

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


def unavailable(fault: str) -> DatabaseUnavailableError:
    """Return the error for a fault that was found without SQLite."""
    error = sqlite3.OperationalError(fault)
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    return DatabaseUnavailableError(None, None, error)


def result_code(error: BaseException | None) -> int:
    """Return SQLite's primary result code for an error of the driver, or 0."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


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
            DatabaseUnavailableError: The file is not what it was.
        """
        if fault := self.fault():
            raise unavailable(fault)

    def require_written(self) -> None:
        """Refuse to call a commit a success if it cannot be one.

        A file system that turned read-only during the commit may have synced nothing without an
        error. On ext4, fsync(2) has nothing more to do then.

        Raises:
            DatabaseUnavailableError: The file is not what it was, or cannot be written.
        """
        self.require()
        try:
            flags = os.statvfs(self.path).f_flag
        except OSError:
            raise unavailable("the database file cannot be read") from None
        if flags & os.ST_RDONLY:
            raise unavailable("the database is read-only")

    def hold_to_log(self) -> None:
        """Remember the log that the writer has open. If somebody deletes it now, commits are lost.

        A stop of the service saves the commits, because the last connection that closes writes
        them to the database.
        """
        self._log_identity = self._log_identity or identity(self.log)

    def let_go_of_log(self) -> None:
        """Forget the log, because the writer is closed and may delete it."""
        self._log_identity = None

    def is_read_only(self) -> bool:
        """Return whether the file's permissions or the file system refuse writes.

        BEGIN IMMEDIATE does not show this, because it writes nothing to the disk, and SQLite may
        use a descriptor again that was opened before the fault.
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


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file, or None if it cannot be found."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
