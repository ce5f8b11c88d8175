"""A consistent copy of the database while the service goes on writing, and the way back."""

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from app.chassis import migrate
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
            require_sound(copy)
            # a link instead of a rename: it fails if the target has appeared meanwhile
            os.link(copy, target)
            sync_directory(target.parent)
    except FileExistsError:
        raise StartupError(f"Backup: {target} exists already; name a new file.") from None
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"Backup: {target} could not be made: {error}.") from None
    return target.stat().st_size


def copy_database(database: Path, copy: Path) -> None:
    """Write one consistent state of the database to a new file, on the disk when this returns."""
    source = open_database(database)
    try:
        destination = open_database(copy, create=True)
        try:
            source.backup(destination, pages=-1)
            # one file to carry away, without a log beside it
            destination.execute("PRAGMA journal_mode=DELETE")
        finally:
            destination.close()
    finally:
        source.close()
    with copy.open("rb") as file:
        os.fsync(file.fileno())


def require_sound(database: Path) -> frozenset[str]:
    """Refuse a database that SQLite finds fault with.

    Returns:
        The revisions it is at.

    Raises:
        StartupError: A page is damaged, or a row refers to one that does not exist.
    """
    connection = open_database(database)
    try:
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
        revisions = migrate.current_revisions(connection)
    finally:
        connection.close()
    if verdict != "ok":
        raise StartupError(f"Backup: {database.name} is damaged: {verdict}.")
    if orphan is not None:
        raise StartupError(
            f"Backup: {database.name} is damaged: table {orphan[0]} has a row whose "
            f"{orphan[2]} is missing."
        )
    return revisions


def restore(copy: Path, database: Path, *, dry_run: bool = False) -> Path | None:
    """Put a copy in the database's place, and keep what was there beside it.

    The caller holds the lock, so that no service uses the database meanwhile. An older copy is
    migrated by the next start.

    Args:
        copy: The file to restore; it is left as it is.
        database: The database file.
        dry_run: Only say whether it could be done.

    Returns:
        Where the replaced database is kept, or None if there was none.

    Raises:
        StartupError: The copy is damaged, not this service's, or newer than this code.
    """
    if not copy.is_file():
        raise StartupError(f"Restore: there is no file {copy}.")
    if database.exists() and copy.samefile(database):
        raise StartupError(f"Restore: {copy} is the database itself; name a copy.")
    try:
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=database.parent) as directory:
            fresh = Path(directory, database.name)
            copy_database(copy, fresh)
            require_known(copy, require_sound(fresh))
            if dry_run:
                return None
            kept = set_aside(database) if database.exists() else None
            fresh.replace(database)
            sync_directory(database.parent)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"Restore: {copy} could not be restored: {error}.") from None
    return kept


def require_known(copy: Path, revisions: frozenset[str]) -> None:
    if not revisions:
        raise StartupError(f"Restore: {copy} is not a database of this service.")
    if unknown := revisions - migrate.known_revisions().keys():
        raise StartupError(
            f"Restore: {copy} is at revision {', '.join(sorted(unknown))}, which this code does "
            "not know: it was made by a newer release. Deploy that one, and restore with it."
        )


def set_aside(database: Path) -> Path:
    """Link the database and its log under another name, and take the log away from the old one.

    A log left beside another database would be replayed into it.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = database.with_name(f"{database.name}.replaced-{stamp}")
    for suffix in ("", "-wal"):
        part = database.with_name(f"{database.name}{suffix}")
        if part.exists():
            os.link(part, kept.with_name(f"{kept.name}{suffix}"))
    sync_directory(database.parent)
    for suffix in ("-wal", "-shm"):
        database.with_name(f"{database.name}{suffix}").unlink(missing_ok=True)
    return kept


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
