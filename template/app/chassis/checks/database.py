# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks that SQLite can be trusted and the database is set up right, whole and up to date."""

import re
from collections.abc import Iterator
from typing import Final

from sqlalchemy import exc

from app.chassis import assembly, integrity, migrate, storage
from app.chassis.checks.finding import Finding, failed, ok, skipped, warning
from app.chassis.database import DatabaseFile, writer_engine
from app.chassis.errors import StartupError
from app.chassis.settings import CoreSettings
from app.chassis.sqlite import open_database, sqlite3

FIXED_SQLITE: Final = (3, 51, 3)
"""First version without the WAL-reset bug (https://sqlite.org/wal.html)."""

SYNCHRONOUS: Final = {"NORMAL": 1, "FULL": 2}


def check(settings: CoreSettings) -> Iterator[Finding]:
    """Check this machine's SQLite, and the database if there is one yet."""
    database = settings.database_path
    yield version()
    yield names()
    yield revisions()
    if not database.exists():
        yield skipped("database.file", f"{database} does not exist yet; the start creates it")
        return
    if not database.stat().st_size:
        yield failed(
            "database.file",
            f"{database} is empty, so it is no database",
            "restore it (README.md, Restore), or delete it to start with a new one",
        )
        return
    try:
        yield pragmas(settings)
        connection = open_database(database)
        try:
            yield from faults(connection)
            yield schema(connection)
        finally:
            connection.close()
    except (sqlite3.DatabaseError, exc.DatabaseError) as error:
        cause = error.orig if isinstance(error, exc.DatabaseError) else error
        yield failed(
            "database.file",
            f"{database} cannot be used: {cause}",
            "restore it from a backup (README.md, Restore)",
        )
    yield lock(settings)


def version() -> Finding:
    shown = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < FIXED_SQLITE:
        return warning(
            "sqlite.version",
            f"{shown} can damage a database that two processes write and checkpoint at once",
            "deploy on x86-64, where pysqlite3 brings a newer one; keep WORKERS=1 until then",
        )
    return ok("sqlite.version", shown)


def names() -> Finding:
    """Check that Alembic can tell every constraint from the others."""
    metadata = assembly.metadata()
    if shared := migrate.shared_names(metadata):
        return failed("models.names", "; ".join(shared), migrate.RENAME)
    forms = map(str, metadata.naming_convention.values())
    if any(re.search(r"\(column_0_(name|label|key)\)", form) for form in forms):
        return warning(
            "models.names",
            "constraints are named by their first column: a second one that begins with the same "
            "column would have the same name, and no migration",
            migrate.RENAME,
        )
    return ok("models.names", "each constraint has a name of its own")


def revisions() -> Finding:
    """Check that each line of revisions has an order, which the start needs."""
    for line in migrate.schemas():
        try:
            migrate.require_line(line)
        except StartupError as error:
            verdict, _, advice = str(error).removeprefix("Database: ").partition("; ")
            return failed("database.revisions", f"{verdict}: the next start refuses them", advice)
    return ok("database.revisions", "in order, to one newest")


def pragmas(settings: CoreSettings) -> Finding:
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
        yield failed("database.integrity", damage, "restore it from a backup (README.md, Restore)")
        return
    yield ok("database.integrity", "SQLite finds no damage")
    if broken:
        yield warning(
            "database.rows",
            "; ".join(broken),
            "correct or delete them: README.md, When something is wrong",
        )
    else:
        yield ok("database.rows", "no row breaks a rule of its table")


def schema(connection: sqlite3.Connection) -> Finding:
    current = migrate.current_revisions(connection)
    heads = migrate.head_revisions()
    if tables := migrate.foreign_tables(connection):
        return failed(
            "database.schema",
            f"no revision, and tables ({', '.join(tables)})",
            migrate.ACCEPT_TABLES,
        )
    shown = ", ".join(sorted(current)) or "no revision"
    if current == heads:
        return ok("database.schema", f"at {shown}, this code's newest")
    if revisions().status == "failed":
        return skipped("database.schema", f"at {shown}; the revisions have to be put right first")
    if migrate.is_migrated(current, migrate.known_revisions(), heads):
        return warning(
            "database.schema",
            f"at {shown}, which this code does not know: a newer release has migrated it",
            "deploy that release again when you can",
        )
    return warning(
        "database.schema",
        f"at {shown}, and this code needs {', '.join(sorted(heads))}",
        "the next start migrates it; `python -m app migrate` does it now",
    )


def lock(settings: CoreSettings) -> Finding:
    file = storage.lock_file(settings.database_path)
    if not storage.is_locked(settings.database_path):
        return ok("database.lock", "free: no service uses the database")
    holder = file.read_text(encoding="utf-8", errors="replace")[:200].strip()
    return ok("database.lock", f"held by the service that runs ({holder or 'unknown'})")
