# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks of `python -m app check` on the volume, on SQLite, and on the database."""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import MetaData, exc

from app.chassis import revisions
from app.chassis.checks.finding import Finding, failed, ok, skipped, warning
from app.chassis.errors import StartupError
from app.chassis.sqlite import backup, integrity, schema, volume
from app.chassis.sqlite.driver import open_database, sqlite3
from app.chassis.sqlite.engines import writer_engine
from app.chassis.sqlite.file import DatabaseFile
from app.chassis.sqlite.settings import SQLiteSettings

LOST_WITH_THE_CONTAINER: Final = frozenset({"overlay", "aufs", "tmpfs", "ramfs", "squashfs"})
WITHOUT_RELIABLE_LOCKS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"})

CLOCK_TOLERANCE: Final = 60.0
"""Seconds that a file's time may be ahead of the clock."""

FIXED_SQLITE: Final = (3, 51, 3)
"""First version without the WAL-reset bug (https://sqlite.org/wal.html)."""

SYNCHRONOUS: Final = {"NORMAL": 1, "FULL": 2}

RESTORE: Final = "restore it from a backup (RUNBOOK.md, Restore)"


def check(settings: SQLiteSettings, metadata: MetaData | None) -> Iterator[Finding]:
    """Check this machine's file systems, its SQLite, and the database if there is one yet.

    Args:
        settings: Settings of the service.
        metadata: Tables of its models. Without them, only the settings are checked.
    """
    database, directory = settings.database_path, settings.database_path.parent
    yield database_path(settings)
    if metadata is None:
        yield skipped("volume", "only known where it is mounted: run `check` there as well")
        return
    yield mounted(settings)
    yield file_system(settings)
    if directory.is_dir():
        yield read_only(directory)
        yield writable(directory)
        yield space(settings)
        yield clock(directory)
    else:
        yield skipped("volume.writable", f"{directory} does not exist yet; the start creates it")
    yield version()
    yield revisions.check_names(metadata)
    yield (order := revisions.check_order())
    name = "database.file"
    if not database.exists():
        yield skipped(name, f"{database} does not exist yet; the start creates it")
        return
    if not volume.size(database):
        advice = f"{RESTORE}, or delete it to start with a new one"
        yield failed(name, f"{database} is empty, so it is no database", advice)
        return
    try:
        yield pragmas(settings)
        with closing(open_database(database)) as connection:
            yield from faults(connection)
            foreign = revisions.foreign_tables(connection, schema.table_names(connection))
            yield revisions.check_standing(schema.current_revisions(connection), foreign, order)
    except (sqlite3.DatabaseError, exc.DatabaseError) as error:
        cause = error.orig if isinstance(error, exc.DatabaseError) else error
        yield failed(name, f"{database} cannot be used: {cause}", RESTORE)
    yield lock(database)


def refused(name: str, error: StartupError) -> Finding:
    """Return the finding for what a start refuses, whose message ends in the advice."""
    verdict, _, advice = str(error).removeprefix("Storage: ").partition(". ")
    return failed(name, verdict, advice)


def database_path(settings: SQLiteSettings) -> Finding:
    """Check that the next deploy keeps the database."""
    name, database = "database.path", settings.database_path
    if others := volume.strays(database):
        return warning(
            name,
            f"{str(others[0])!a} lies beside {database}, and is not used",
            "a DATABASE_URL that ended in white space made it: look what is in it, and delete it",
        )
    if settings.volume is None:
        if settings.production:
            return warning(
                name,
                f"{database} is on no volume that is known",
                "set VOLUME_PATH to where the volume is mounted, so that it can be checked",
            )
        return ok(name, f"{database}, on this machine")
    if not database.is_relative_to(os.path.normpath(settings.volume)):
        return warning(
            name,
            f"{database} is not below {settings.volume}",
            f"set DATABASE_URL to sqlite:///{settings.volume}/app.db",
        )
    return ok(name, f"{database} is on the volume")


def mounted(settings: SQLiteSettings) -> Finding:
    name = "volume.mounted"
    if settings.volume is None:
        return skipped(name, "no volume is configured")
    try:
        volume.require_mount(settings.volume)
    except StartupError as error:
        return refused(name, error)
    return ok(name, f"{settings.volume} is a mount")


def mount_of(path: Path, known: list[volume.Mount]) -> volume.Mount | None:
    """Return the mount that a path lies on. The longest one counts, and of equal ones the last."""
    real = Path(os.path.realpath(path))
    around = [mount for mount in reversed(known) if real.is_relative_to(mount.point)]
    return max(around, key=lambda mount: len(mount.point), default=None)


def file_system(settings: SQLiteSettings) -> Finding:
    """Check that the database's own mount keeps data and locks. A bind mount counts as one."""
    name, known = "volume.file-system", volume.mounts()
    mount = mount_of(settings.database_path.parent, known)
    if mount is None:
        return skipped(name, "this system has no list of mounts")
    place = f"{settings.database_path.parent} is on {mount.kind}, mounted at {mount.point}"
    if mount.kind in LOST_WITH_THE_CONTAINER:
        verdict = f"{place}, which is lost with the container"
        if settings.production:
            return failed(name, verdict, "put the database on a volume")
        return ok(name, verdict)
    if mount.kind in WITHOUT_RELIABLE_LOCKS:
        return warning(
            name,
            f"{place}, where locks of several processes are not reliable",
            "use a volume with a local file system (https://sqlite.org/faq.html#q5)",
        )
    expected = settings.volume and mount_of(settings.volume, known)
    if expected and expected.point != mount.point:
        return warning(
            name,
            f"{place}, and not on the volume's mount {expected.point}",
            "remove the mount in between, or move the database",
        )
    return ok(name, place)


def read_only(directory: Path) -> Finding:
    name = "volume.read-only"
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return failed(name, f"{directory} is mounted read-only", "mount it for writing")
    return ok(name, f"{directory} is not mounted read-only")


def writable(directory: Path) -> Finding:
    name = "volume.writable"
    try:
        volume.require_writable(directory)
    except StartupError as error:
        return refused(name, error)
    return ok(name, f"uid {os.geteuid()} can write to {directory}")


def space(settings: SQLiteSettings) -> Finding:
    """Check that there is room to go on writing, and for a copy beside the database."""
    name, directory = "volume.space", settings.database_path.parent
    free, needed = volume.free_bytes(directory), backup.total_size(settings.database_path)
    shown = f"{free / 1e6:.0f} MB free at {directory}"
    if free < settings.wanted_free_bytes:
        report = failed if free < settings.min_free_bytes else warning
        return report(name, f"only {shown}", "grow the volume, or delete old copies")
    if free < needed + settings.min_free_bytes:
        return warning(
            name,
            f"{shown}, too little for a copy of the database ({needed / 1e6:.0f} MB)",
            "grow the volume before you need backup or restore there",
        )
    return ok(name, shown)


def clock(directory: Path) -> Finding:
    """Check that the clock did not go back.

    The names of backups and the signatures for buckets depend on the time.
    """
    latest = time.time() + CLOCK_TOLERANCE
    for path in directory.iterdir():
        if path.lstat().st_mtime > latest:
            return warning(
                "clock", f"{path.name} was written in the future", "set the machine's clock"
            )
    return ok("clock", "no file is younger than the clock")


def version() -> Finding:
    name, shown = "sqlite.version", f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < FIXED_SQLITE:
        return warning(
            name,
            f"{shown} can damage a database that two processes write and checkpoint at once",
            "deploy on x86-64, where pysqlite3 brings a newer one; keep WORKERS=1 until then",
        )
    return ok(name, shown)


def pragmas(settings: SQLiteSettings) -> Finding:
    """Check the pragmas that are in force on the service's own connection."""
    expected = {
        "journal_mode": "wal",
        "synchronous": SYNCHRONOUS[settings.sqlite_synchronous],
        "foreign_keys": 1,
    }
    engine = writer_engine(DatabaseFile(settings.database_path), settings.sqlite_synchronous)
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        found = {name: cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in expected}
    finally:
        connection.close()
        engine.dispose()
    shown = ", ".join(f"{name} {value}" for name, value in found.items())
    if found != expected:
        return failed("sqlite.pragmas", shown, "start the service, which sets them, and look again")
    return ok("sqlite.pragmas", shown)


def faults(connection: sqlite3.Connection) -> Iterator[Finding]:
    """Check for damage, and for rows that break a rule of their table.

    Such rows are only a warning, because the service works and nothing else waits for them.
    """
    damage, broken = integrity.find_faults(connection, quick=True)
    if damage:
        yield failed("database.integrity", damage, RESTORE)
        return
    yield ok("database.integrity", "SQLite finds no damage")
    if broken:
        yield warning(
            "database.rows",
            "; ".join(broken),
            "correct or delete them: RUNBOOK.md, When something is wrong",
        )
    else:
        yield ok("database.rows", "no row breaks a rule of its table")


def lock(database: Path) -> Finding:
    if holder := volume.holder(database):
        return ok("database.lock", f"held by the service that runs ({holder})")
    return ok("database.lock", "free: no service uses the database")
