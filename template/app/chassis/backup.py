"""A consistent copy of the database while the service goes on writing."""

import os
import tempfile
from pathlib import Path

from app.chassis.errors import StartupError
from app.chassis.sqlite import open_database, sqlite3


def backup(database: Path, target: Path) -> int:
    """Copy the database to a new file, check the copy, and only then give it its name.

    SQLite's backup interface copies one consistent state in one step; a copy of the file
    itself would miss what is still in the write-ahead log.

    Args:
        database: The database file.
        target: The file to make; it must not exist.

    Returns:
        The size of the copy in bytes.

    Raises:
        StartupError: The database cannot be read, the target exists or cannot be written, or
            the copy does not pass SQLite's integrity check.
    """
    if target.is_dir():
        raise StartupError(f"Backup: {target} is a directory; name a file in it.")
    if target.exists():
        raise StartupError(f"Backup: {target} exists already; name a new file.")
    if not target.parent.is_dir():
        raise StartupError(
            f"Backup: the directory {target.parent} does not exist; create it first."
        )
    if not database.is_file():
        raise StartupError(f"Backup: there is no database at {database}; start the service once.")
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as directory:
            copy = Path(directory, target.name)
            copy_database(database, copy)
            # a link instead of a rename: it fails if the target has appeared meanwhile
            os.link(copy, target)
            sync_directory(target.parent)
    except FileExistsError:
        raise StartupError(f"Backup: {target} exists already; name a new file.") from None
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"Backup: {target} could not be made: {error}.") from None
    return target.stat().st_size


def copy_database(database: Path, copy: Path) -> None:
    source = open_database(database)
    try:
        destination = open_database(copy, create=True)
        try:
            source.backup(destination, pages=-1)
            # one file to carry away, without a log beside it
            destination.execute("PRAGMA journal_mode=DELETE")
            (verdict,) = destination.execute("PRAGMA integrity_check(1)").fetchone()
        finally:
            destination.close()
    finally:
        source.close()
    if verdict != "ok":
        raise StartupError(f"Backup: the copy of {database} fails the integrity check: {verdict}.")
    with copy.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
