# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Health of the database for /health, and the figures behind it for `python -m app status`.

A pooled `SELECT 1` goes on answering after the file is deleted or replaced, or its volume is
unmounted. So the check opens the file afresh, takes the write lock, reads the schema's revision and
releases the lock.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from app.chassis import revisions
from app.chassis.checks.finding import Degraded, HealthCheck, Unhealthy
from app.chassis.database import Database
from app.chassis.health import ago, in_bytes
from app.chassis.sqlite import backup, schema, volume
from app.chassis.sqlite.driver import open_database, sqlite3
from app.chassis.sqlite.file import DatabaseFile, result_code
from app.chassis.sqlite.readers import Readers
from app.chassis.sqlite.settings import SQLiteSettings
from app.chassis.sqlite.writer import SingleWriter

WRITE_TIMEOUT: Final = 2.0
"""Seconds to wait for the database's write lock."""

REASONS: Final = {
    sqlite3.SQLITE_BUSY: "the database is locked",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_FULL: "the volume is full",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
    sqlite3.SQLITE_NOTADB: "the file is not a database",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
}
"""Messages for SQLite's errors, because the driver's own text can contain paths and SQL."""

Result = TypeVar("Result")


def checks(settings: SQLiteSettings, database: Database | None) -> dict[str, HealthCheck]:
    """Return the checks by name, without a database only those of its file."""
    of_server: dict[str, HealthCheck] = {}
    if database is None:
        file = DatabaseFile(settings.database_path)
    else:
        assert isinstance(database.readers, Readers)
        assert isinstance(database.writer, SingleWriter)
        file, of_server["readers"] = database.writer.file, database.readers.look
    known, heads = revisions.known_revisions(), revisions.head_revisions()
    return {
        "database": partial(check_file, file, known, heads),
        "disk": partial(check_disk, settings),
        **of_server,
    }


def check_file(file: DatabaseFile, known: Mapping[str, object], heads: frozenset[str]) -> None:
    """Check that the file is there, is a database, is writable, and has this code's schema."""
    if fault := file.fault():
        raise Unhealthy(fault)
    if file.is_read_only():
        raise Unhealthy("the database is read-only")
    try:
        with closing(open_database(file.path, busy_timeout=WRITE_TIMEOUT)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            current = schema.current_revisions(connection)
            connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        reason = REASONS.get(result_code(error), "the database does not answer")
        raise Unhealthy(reason) from error
    if not revisions.is_migrated(current, known, heads):
        raise Unhealthy("the database is not at this release's schema")


def check_disk(settings: SQLiteSettings) -> None:
    """Check that the volume has room for more than a few transactions."""
    try:
        free = volume.free_bytes(settings.database_path.parent)
    except OSError as error:
        raise Unhealthy("the database's directory is missing") from error
    if free < settings.min_free_bytes:
        raise Unhealthy("the volume is full")
    if free < settings.low_free_bytes:
        raise Degraded("the volume is nearly full")


def figures(settings: SQLiteSettings) -> dict[str, Any]:
    """Return sizes in bytes and ages in seconds. A figure that nobody can know is None."""
    database = settings.database_path
    newest = known(lambda: backup.newest(database))
    return {
        "running": volume.holder(database) is not None,
        "database": str(database),
        "database_bytes": known(lambda: database.stat().st_size),
        "wal_bytes": known(lambda: volume.beside(database, "-wal").stat().st_size),
        "free_bytes": known(lambda: volume.free_bytes(database.parent)),
        "revision": known(lambda: revision(database)),
        "newest_backup": newest and str(newest.path),
        "newest_backup_age": newest and (datetime.now(UTC) - newest.made).total_seconds(),
    }


def known(measure: Callable[[], Result]) -> Result | None:
    try:
        return measure()
    except (OSError, sqlite3.DatabaseError):
        return None


def revision(database: Path) -> str | None:
    with closing(open_database(database)) as connection:
        return ", ".join(sorted(schema.current_revisions(connection))) or None


def in_words(found: Mapping[str, Any]) -> dict[str, str]:
    """Return a label and a text for each figure."""
    age = found["newest_backup_age"]
    return {
        "service": "running" if found["running"] else "stopped",
        "database": f"{found['database']}, {in_bytes(found['database_bytes'])}",
        "log (WAL)": in_bytes(found["wal_bytes"] or 0),
        "free space": in_bytes(found["free_bytes"]),
        "revision": found["revision"] or "none",
        "newest backup": "none on the volume"
        if age is None
        else f"{found['newest_backup']}, {ago(age)}",
    }
