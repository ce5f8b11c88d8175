# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Backup and restore of the database. A backup is consistent while the service goes on writing."""

import fcntl
import glob
import gzip
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from app.chassis import integrity, migrate
from app.chassis.errors import StartupError
from app.chassis.settings import CoreSettings
from app.chassis.sqlite import open_database, sqlite3
from app.chassis.storage import sync_directory

logger = logging.getLogger(__name__)

STAMP: Final = "%Y%m%dT%H%M%SZ"
YOUNG: Final = 10.0
"""Seconds for which a backup's directory may be without its lock."""

GZIP_MAGIC: Final = b"\x1f\x8b"


SILENT: Final = 1.0
"""Seconds before anything is shown."""

BAR_WIDTH: Final = 30


@contextmanager
def progress(label: str, done: Callable[[], int] | None = None, total: int = 0) -> Iterator[None]:
    """Show a bar on stderr while the block runs, if stderr is a terminal.

    Args:
        label: Name of the work.
        done: Function that returns the amount done by now. If it is None, the seconds are shown.
        total: Total amount, in the same unit.
    """
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    painter = threading.Thread(target=paint, args=(label, done, total, ended), daemon=True)
    painter.start()
    try:
        yield
    finally:
        ended.set()
        painter.join()


def paint(label: str, done: Callable[[], int] | None, total: int, ended: threading.Event) -> None:
    started = time.monotonic()
    if ended.wait(SILENT):
        return
    while True:
        if done is None:
            line = f"{label} {time.monotonic() - started:.0f} s"
        else:
            line = f"{label} {bar(done(), total)}"
        # This returns to the line's start, and clears the rest of the line
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()
        if ended.wait(0.2):
            break
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()


def bar(done: int, total: int) -> str:
    """Return the bar and the percentage, which is never more than 100."""
    share = min(1.0, done / total) if total else 1.0
    filled = round(share * BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share:4.0%}"


class Copy(NamedTuple):
    """Copy in a directory, found by the name that `backup` gave it."""

    path: Path
    made: datetime


def backup(
    database: Path,
    target: Path | None = None,
    *,
    compress: bool = False,
    keep: int | None = None,
    reserve: int = 0,
) -> Path:
    """Copy the database to a new file, check the copy, and only then give it its name.

    SQLite's backup interface copies one consistent state in one step. A copy of the file
    itself would miss the changes that are still in the write-ahead log.

    Args:
        database: The database file.
        target: The file to make, which must not exist, or a directory for a file named after
            the time. None stands for the directory `backups` beside the database.
        compress: Whether to compress it with gzip. This is also done if the target ends in `.gz`.
        keep: Number of the newest copies in the directory to keep. The others are deleted.
        reserve: Bytes that have to stay free, so that the service can go on writing.

    Returns:
        The path of the copy.

    Raises:
        StartupError: The database cannot be read, the target exists or cannot be written, there
            is not enough room, or the copy is damaged.
    """
    if not database.is_file():
        raise StartupError(f"Backup: there is no database at {database}; start the service once.")
    if target is None:
        target = backups_directory(database)
        target.mkdir(mode=0o700, exist_ok=True)
    if named := target.is_dir():
        target = name_in(target, database, compress=compress)
    elif keep is not None:
        raise StartupError("Backup: --keep rotates the copies in a directory; name one.")
    if target.exists() and not named:
        raise StartupError(f"Backup: {target} exists already; name a new file.")
    if not target.parent.is_dir():
        raise StartupError(
            f"Backup: the directory {target.parent} does not exist; create it first."
        )
    compress = compress or target.suffix == ".gz"
    require_room(target.parent, total_size(database) * (2 if compress else 1) + reserve, "Backup")
    try:
        with workspace(target.parent) as directory:
            copy = directory / "copy.db"
            copy_database(database, copy)
            require_sound(copy)
            if compress:
                copy = compressed(copy)
            # A link fails if the target has appeared meanwhile, and a rename would replace it
            while True:
                try:
                    os.link(copy, target)
                    break
                except FileExistsError:
                    if not named:
                        raise
                    # Another copy was made in the same second and has the same name
                    time.sleep(0.1)
                    target = name_in(target.parent, database, compress=compress)
            sync_directory(target.parent)
        if keep is not None:
            rotate(target.parent, database, keep)
    except FileExistsError:
        raise StartupError(f"Backup: {target} exists already; name a new file.") from None
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"Backup: {target} could not be made: {error}.") from None
    return target


def name_in(directory: Path, database: Path, *, compress: bool) -> Path:
    """Return the path of a new copy, named after the database and the time in UTC."""
    return directory / f"{database.stem}-{datetime.now(UTC):{STAMP}}.db{'.gz' * compress}"


@contextmanager
def workspace(directory: Path) -> Iterator[Path]:
    """Yield a directory below the given one, locked until it is removed or this process ends."""
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=directory) as made:
        descriptor = os.open(made, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(made)
        finally:
            os.close(descriptor)


def backups_directory(database: Path) -> Path:
    """Return the default directory for copies, which is on the volume."""
    return database.with_name("backups")


def copies(directory: Path, database: Path) -> list[Copy]:
    """Return the copies of the database in a directory, the newest first. Ignore other files."""
    form = re.compile(re.escape(database.stem) + r"-(\d{8}T\d{6}Z)\.db(\.gz)?")
    found = [
        Copy(path, datetime.strptime(match[1], STAMP).replace(tzinfo=UTC))
        for path in (directory.iterdir() if directory.is_dir() else ())
        if (match := form.fullmatch(path.name))
    ]
    return sorted(found, key=lambda copy: copy.made, reverse=True)


def rotate(directory: Path, database: Path, keep: int) -> None:
    """Delete all but the newest copies. Leave out copies whose time is in the future.

    A clock that ran ahead has named those.
    """
    now = datetime.now(UTC)
    made = [copy.path for copy in copies(directory, database) if copy.made <= now]
    for path in made[keep:]:
        path.unlink(missing_ok=True)


def fetch(settings: CoreSettings, target: Path, at: datetime | None = None) -> bool:
    """Write the newest copy on the volume to a new file.

    Args:
        settings: Settings with the path of the database.
        target: The file to write.
        at: The time that the copy must not be younger than.

    Returns:
        True if there was such a copy.
    """
    database = settings.database_path
    for copy in copies(backups_directory(database), database):
        if at is None or copy.made <= at:
            unpack(copy.path, target)
            return True
    return False


def total_size(database: Path) -> int:
    """Return the size of the database with its log, in bytes."""
    parts = (database, database.with_name(f"{database.name}-wal"))
    return sum(part.stat().st_size for part in parts if part.exists())


def require_room(directory: Path, needed: int, doing: str) -> None:
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise StartupError(
            f"{doing}: {directory} has {free / 1e6:.0f} MB free, and {needed / 1e6:.0f} MB are "
            "needed; make room or name another directory."
        )


def copy_database(database: Path, copy: Path) -> None:
    """Write one consistent state of the database to a new file, and sync it to the disk."""
    source = open_database(database)
    try:
        destination = open_database(copy, create=True)
        try:
            with progress("Copying", lambda: total_size(copy), total_size(database)):
                source.backup(destination, pages=-1)
            # The copy has to be one file, without a log beside it
            destination.execute("PRAGMA journal_mode=DELETE")
        finally:
            destination.close()
    finally:
        source.close()
    with copy.open("rb") as file:
        os.fsync(file.fileno())


def compressed(copy: Path) -> Path:
    """Compress the copy into a file beside it, read that back once, and delete the original."""
    packed = copy.with_name(f"{copy.name}.gz")
    with (
        copy.open("rb") as source,
        progress("Compressing", source.tell, copy.stat().st_size),
        gzip.open(packed, "wb", compresslevel=6) as destination,
    ):
        shutil.copyfileobj(source, destination)
    with packed.open("rb") as file:
        os.fsync(file.fileno())
        with gzip.open(file) as content:
            while content.read(1 << 20):
                pass
    copy.unlink()
    return packed


def unpack(copy: Path, target: Path) -> None:
    """Write a copy to a new file, and decompress it if it is compressed."""
    opener = gzip.open if is_compressed(copy) else open
    with opener(copy, "rb") as source, target.open("xb") as destination:
        shutil.copyfileobj(source, destination)


def is_compressed(copy: Path) -> bool:
    with copy.open("rb") as file:
        return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def require_sound(database: Path) -> frozenset[str]:
    """Refuse a database that is damaged, and warn of rows that break a rule.

    Returns:
        The revisions of the database.

    Raises:
        StartupError: A page is damaged.
    """
    connection = open_database(database)
    try:
        with progress("Checking"):
            damage, broken = integrity.find_faults(connection)
        revisions = migrate.current_revisions(connection)
    finally:
        connection.close()
    if damage:
        raise StartupError(f"Backup: {database.name} is damaged: {damage}.")
    for line in broken:
        logger.warning("The copy is whole, and has what was there before: %s", line)
    return revisions


def restore(
    copy: Path, database: Path, *, dry_run: bool = False, name: str | None = None
) -> Path | None:
    """Put a copy in the database's place, and keep the old database beside it.

    The copy is checked and migrated to this code's schema before anything changes. The caller
    holds the lock, so that no service uses the database meanwhile.

    Args:
        copy: The file to restore, which may be compressed. It is not changed.
        database: The database file.
        dry_run: Only check that the restore could be done.
        name: The name of the copy in messages.

    Returns:
        The path of the old database, or None if there was none.

    Raises:
        StartupError: The copy is damaged, is not this service's or is newer than this code, or
            its migration failed.
    """
    name = name or str(copy)
    if not copy.is_file():
        raise StartupError(f"Restore: there is no file {copy}.")
    if database.exists() and copy.samefile(database):
        raise StartupError(f"Restore: {copy} is the database itself; name a copy.")
    try:
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=database.parent) as directory:
            fresh = Path(directory, database.name)
            if is_compressed(copy):
                unpacked = Path(directory, "unpacked.db")
                unpack(copy, unpacked)
                copy = unpacked
            require_room(database.parent, total_size(copy), "Restore")
            copy_database(copy, fresh)
            require_known(name, require_sound(fresh))
            migrate.upgrade(fresh)
            if dry_run:
                return None
            kept = set_aside(database) if database.exists() else None
            fresh.replace(database)
            sync_directory(database.parent)
    except (OSError, EOFError, sqlite3.Error) as error:
        raise StartupError(f"Restore: {name} could not be restored: {error}.") from None
    return kept


def require_known(name: str, revisions: frozenset[str]) -> None:
    if not revisions:
        raise StartupError(f"Restore: {name} is not a database of this service.")
    if unknown := revisions - migrate.known_revisions().keys():
        raise StartupError(
            f"Restore: {name} is at revision {', '.join(sorted(unknown))}, which this code does "
            "not know: it was made by a newer release. Deploy that one, and restore with it."
        )


def set_aside(database: Path) -> Path:
    """Link the database and its log under another name, and delete the log under the old name.

    SQLite would replay a log that lies beside another database into that database.
    """
    fold_log(database)
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


def fold_log(database: Path) -> None:
    """Checkpoint the log, so that the database is whole if the restore ends here.

    Raises:
        StartupError: Another process reads the database.
    """
    with suppress(sqlite3.Error):  # A damaged database is set aside as it is
        connection = open_database(database)
        try:
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        finally:
            connection.close()
        if busy:
            raise StartupError(f"Restore: another process reads {database}; let it finish first.")


def tidy(database: Path) -> None:
    """Remove the files that a killed start, restore or backup has left.

    The caller holds the lock.
    """
    for prefix in (".new-", ".restore-"):
        for path in database.parent.glob(f"{prefix}*/"):
            shutil.rmtree(path, ignore_errors=True)
    for directory in (database.parent, backups_directory(database)):
        tidy_copies(directory)
    for kept in database.parent.glob(f"{glob.escape(database.name)}.replaced-*"):
        log = kept.with_name(f"{kept.name}-wal")
        with suppress(OSError):
            if kept.samefile(database) and not log.exists():
                # The database was not replaced, so this is only a second name of it
                kept.unlink()


def tidy_copies(directory: Path) -> None:
    """Remove what killed backups have left in the directory."""
    for path in directory.glob(".backup-*/"):
        with suppress(OSError):  # The backup ends at this moment, or it still runs
            if time.time() - path.stat().st_mtime < YOUNG:
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
