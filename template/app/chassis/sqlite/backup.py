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
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from app.chassis import revisions
from app.chassis.checks.finding import Finding, ok, skipped
from app.chassis.errors import StartupError
from app.chassis.sqlite import integrity, schema
from app.chassis.sqlite.driver import open_database, sqlite3
from app.chassis.sqlite.settings import SQLiteSettings
from app.chassis.sqlite.volume import beside, free_bytes, size, sync, try_lock

logger = logging.getLogger(__name__)

STAMP: Final = "%Y%m%dT%H%M%SZ"
YOUNG: Final = 10.0
"""Seconds for which a backup's directory may be without its lock."""

GZIP_MAGIC: Final = b"\x1f\x8b"

SILENT: Final = 1.0
"""Seconds before anything is shown."""

BAR_WIDTH: Final = 30


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
    directory = target.parent
    taken = f"Backup: {target} exists already; name a new file."
    if target.exists() and not named:
        raise StartupError(taken)
    if not directory.is_dir():
        raise StartupError(f"Backup: the directory {directory} does not exist; create it first.")
    compress = compress or target.suffix == ".gz"
    require_room(directory, total_size(database) * (2 if compress else 1) + reserve, "Backup")
    try:
        with workspace(directory) as work:
            copy = work / "copy.db"
            copy_database(database, copy)
            require_sound(copy)
            if compress:
                copy = compressed(copy)
            while True:
                try:
                    # A link, unlike a rename, replaces no file that has appeared meanwhile
                    os.link(copy, target)
                    break
                except FileExistsError:
                    if not named:
                        raise StartupError(taken) from None
                # Another copy was made in the same second and has the same name
                time.sleep(0.1)
                target = name_in(directory, database, compress=compress)
            sync(directory)
        if keep is not None:
            rotate(directory, database, keep)
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


def copies(directory: Path, database: Path, until: datetime | None = None) -> list[Copy]:
    """Return the copies of the database in a directory, the newest first.

    Args:
        directory: The directory, which may be missing and may have other files.
        database: The database file.
        until: The time that no copy may be younger than. The present time leaves out the copies
            that a clock that ran ahead has named.
    """
    form = re.compile(re.escape(database.stem) + r"-(\d{8}T\d{6}Z)\.db(\.gz)?")
    found = []
    for path in sorted(directory.glob("*"), reverse=True):
        if match := form.fullmatch(path.name):
            made = datetime.strptime(match[1], STAMP).replace(tzinfo=UTC)
            if until is None or made <= until:
                found.append(Copy(path, made))
    return found


def newest(database: Path, until: datetime | None = None) -> Copy | None:
    """Return the newest copy on the volume, or the newest that is not younger than a time."""
    return next(iter(copies(backups_directory(database), database, until)), None)


def rotate(directory: Path, database: Path, keep: int) -> None:
    """Delete all but the newest copies. Leave out copies whose time is in the future."""
    for copy in copies(directory, database, datetime.now(UTC))[keep:]:
        copy.path.unlink(missing_ok=True)


def fetch(settings: SQLiteSettings, target: Path, at: datetime | None = None) -> bool:
    """Write the newest copy on the volume to a new file, compressed if the copy is.

    Args:
        settings: Settings with the path of the database.
        target: The file to write.
        at: The time that the copy must not be younger than.

    Returns:
        True if there was such a copy.
    """
    copy = newest(settings.database_path, at)
    if copy is not None:
        shutil.copyfile(copy.path, target)
    return copy is not None


def check(settings: SQLiteSettings) -> Iterator[Finding]:
    """Yield a finding about the newest copy on the volume, which a person has made."""
    name, copy = "backup.newest", newest(settings.database_path)
    if copy is None:
        yield skipped(name, "no copy on the volume; `python -m app backup --keep 7` makes one")
    else:
        yield ok(name, f"{copy.path} is of {copy.made:%Y-%m-%d %H:%M:%S} UTC")


def total_size(database: Path) -> int:
    """Return the size of the database with its log, in bytes."""
    return size(database) + size(beside(database, "-wal"))


def shortage(directory: Path, needed: int) -> str | None:
    """Return that the directory has less room than the bytes that are needed, or None."""
    free = free_bytes(directory)
    if free >= needed:
        return None
    return f"{directory} has {free / 1e6:.0f} MB free, and {needed / 1e6:.0f} MB are needed"


def require_room(directory: Path, needed: int, doing: str) -> None:
    if short := shortage(directory, needed):
        raise StartupError(f"{doing}: {short}; make room or name another directory.")


def copy_database(database: Path, copy: Path) -> None:
    """Write one consistent state of the database to a new file, and sync it to the disk."""
    with (
        closing(open_database(database)) as source,
        closing(open_database(copy, create=True)) as destination,
    ):
        with progress("Copying", lambda: total_size(copy), total_size(database)):
            source.backup(destination, pages=-1)
        # The copy has to be one file, without a log beside it
        destination.execute("PRAGMA journal_mode=DELETE")
    sync(copy)


def compressed(copy: Path) -> Path:
    """Compress the copy into a file beside it, read that back once, and delete the original."""
    packed = beside(copy, ".gz")
    with (
        copy.open("rb") as source,
        progress("Compressing", source.tell, size(copy)),
        gzip.open(packed, "wb", compresslevel=6) as destination,
    ):
        shutil.copyfileobj(source, destination)
    sync(packed)
    with gzip.open(packed) as content:
        while content.read(1 << 20):
            pass
    copy.unlink()
    return packed


def is_compressed(copy: Path) -> bool:
    with copy.open("rb") as file:
        return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def require_sound(database: Path) -> frozenset[str]:
    """Refuse a damaged database, warn of rows that break a rule, and return the revisions."""
    with closing(open_database(database)) as connection:
        with progress("Checking"):
            damage, broken = integrity.find_faults(connection)
        found = schema.current_revisions(connection)
    if damage:
        raise StartupError(f"Backup: {database.name} is damaged: {damage}.")
    for line in broken:
        logger.warning("The copy is not damaged. It has these rows, as the database had: %s", line)
    return found


def restore(
    copy: Path,
    database: Path,
    upgrade: Callable[[Path], None],
    *,
    dry_run: bool = False,
    name: str | None = None,
) -> Path | None:
    """Put a copy in the database's place, and keep the old database beside it.

    The copy is checked and migrated to this code's schema before anything changes. The caller
    holds the lock, so that no service uses the database meanwhile.

    Args:
        copy: The file to restore, which may be compressed. It is not changed.
        database: The database file.
        upgrade: Function that brings the copy to this code's schema.
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
                with gzip.open(copy) as source, unpacked.open("xb") as destination:
                    shutil.copyfileobj(source, destination)
                copy = unpacked
            require_room(database.parent, total_size(copy), "Restore")
            copy_database(copy, fresh)
            require_known(name, require_sound(fresh))
            upgrade(fresh)
            if dry_run:
                return None
            kept = set_aside(database) if database.exists() else None
            put_in_place(fresh, database)
    except (OSError, EOFError, sqlite3.Error) as error:
        raise StartupError(f"Restore: {name} could not be restored: {error}.") from None
    return kept


def require_known(name: str, found: frozenset[str]) -> None:
    if not found:
        raise StartupError(f"Restore: {name} is not a database of this service.")
    if unknown := found - revisions.known_revisions().keys():
        raise StartupError(
            f"Restore: {name} is at revision {', '.join(sorted(unknown))}, which this code does "
            "not know: it was made by a newer release. Deploy that one, and restore with it."
        )


def set_aside(database: Path) -> Path:
    """Link the database and its log under another name, which is returned."""
    fold_log(database)
    kept = beside(database, f".replaced-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    os.link(database, kept)
    if beside(database, "-wal").exists():
        os.link(beside(database, "-wal"), beside(kept, "-wal"))
    sync(database.parent)
    return kept


def fold_log(database: Path) -> None:
    """Checkpoint the log, so that the database is whole if the restore ends here.

    Raises:
        StartupError: Another process reads the database.
    """
    # A damaged database is set aside as it is
    with suppress(sqlite3.Error), closing(open_database(database)) as connection:
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        if busy:
            raise StartupError(f"Restore: another process reads {database}; let it finish first.")


def put_in_place(fresh: Path, database: Path) -> None:
    """Give a complete new file the database's name.

    The old log goes first, because SQLite would replay it into any database beside it.
    """
    for suffix in ("-wal", "-shm"):
        beside(database, suffix).unlink(missing_ok=True)
    fresh.replace(database)
    sync(database.parent)


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
        with suppress(OSError):
            if kept.samefile(database) and not beside(kept, "-wal").exists():
                # The database was not replaced, so this is only a second name of it
                kept.unlink()


def tidy_copies(directory: Path) -> None:
    """Remove what killed backups have left in the directory."""
    for path in directory.glob(".backup-*/"):
        with suppress(OSError):  # The backup ends at this moment
            if time.time() - path.stat().st_mtime < YOUNG:
                continue
            # A backup that still runs holds the lock
            if (descriptor := try_lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)


@contextmanager
def progress(label: str, done: Callable[[], int] | None = None, total: int = 0) -> Iterator[None]:
    """Show a bar of the amount done while the block runs, if stderr is a terminal.

    Without an amount and its total, show the seconds.
    """
    if not sys.stderr.isatty():
        yield
        return
    started, ended = time.monotonic(), threading.Event()

    def show(text: str) -> None:
        # This returns to the line's start, and clears the rest of the line
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)

    def paint() -> None:
        if ended.wait(SILENT):
            return
        while True:
            seconds = f"{time.monotonic() - started:.0f} s"
            show(f"{label} {bar(done(), total) if done else seconds}")
            if ended.wait(0.2):
                break
        show("")

    painter = threading.Thread(target=paint, daemon=True)
    painter.start()
    try:
        yield
    finally:
        ended.set()
        painter.join()


def bar(done: int, total: int) -> str:
    """Return the bar and the percentage, which is never more than 100."""
    share = min(1.0, done / total) if total else 1.0
    filled = round(share * BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share:4.0%}"
