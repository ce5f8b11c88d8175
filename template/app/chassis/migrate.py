"""Schema migrations: Alembic, once at start, before any worker exists.

Importing Alembic takes a third of a second, so the revision is first compared with
plain SQLite and Alembic is loaded only when there is something to do.
"""

import ast
import logging
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT, ChassisSettings
from app.chassis.sqlite import MAGIC, open_database, sqlite3

if TYPE_CHECKING:
    from sqlalchemy import MetaData

logger = logging.getLogger(__name__)

VERSIONS: Final = PROJECT_ROOT / "migrations" / "versions"


def known_revisions() -> dict[str, tuple[str, ...]]:
    """Every revision and what it follows, read without running the files."""
    found = {}
    for file in sorted(VERSIONS.glob("*.py")):
        values = {}
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                target = node.targets[0]
            elif isinstance(node, ast.AnnAssign):
                target = node.target
            else:
                continue
            if isinstance(target, ast.Name) and target.id in {"revision", "down_revision"}:
                assert node.value is not None
                values[target.id] = ast.literal_eval(node.value)
        if "revision" in values:
            found[values["revision"]] = as_tuple(values.get("down_revision"))
    return found


def as_tuple(value: str | Iterable[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def head_revisions() -> frozenset[str]:
    """The revisions that no other follows."""
    revisions = known_revisions()
    followed = {name for parents in revisions.values() for name in parents}
    return frozenset(revisions.keys() - followed)


def current_revisions(connection: sqlite3.Connection) -> frozenset[str]:
    """The revisions the database is at; none for a database that was never migrated.

    Raises:
        sqlite3.DatabaseError: The file is not a readable database.
    """
    tables = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    )
    if tables.fetchone() is None:
        return frozenset()
    rows = connection.execute("SELECT version_num FROM alembic_version")
    return frozenset(version for (version,) in rows)


def is_migrated(current: frozenset[str], known: Iterable[str], heads: frozenset[str]) -> bool:
    """Whether this code can serve the database.

    A revision that this code does not know was written by a newer release: after a
    rollback the volume keeps its schema, so the code before it has to serve it.
    """
    return current == heads or bool(current - set(known))


def require_database(database: Path) -> None:
    """Refuse a file that is no database, and make one where there is no file.

    SQLite takes an empty file for a new database and deletes the write-ahead log beside it. The
    service never leaves one: a new database gets its name when it is one.

    Raises:
        StartupError: The file is empty or something else.
    """
    try:
        with database.open("rb") as file:
            start = file.read(len(MAGIC))
    except FileNotFoundError:
        logger.warning("There is no database at %s: making a new, empty one", database)
        create_database(database)
        return
    if start != MAGIC:
        kind = "not a database" if start else "empty"
        raise StartupError(
            f"Database: {database} cannot be used: the file is {kind}. Restore it from a backup "
            "(README.md, Restore), or move it away to start with an empty one."
        )


def create_database(database: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=database.parent) as directory:
        fresh = Path(directory, database.name)
        connection = open_database(fresh, create=True)
        # what makes SQLite write the file, and wait until it is on the disk
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        # a link instead of a rename: it replaces nothing that has appeared meanwhile
        with suppress(FileExistsError):
            os.link(fresh, database)


def upgrade(database: Path) -> None:
    """Bring the database to this code's newest revision, creating it if it is missing.

    Each upgrade is one transaction: a crash in the middle leaves nothing of it behind.

    Raises:
        StartupError: The file is not a database, or a migration failed.
    """
    require_database(database)
    try:
        connection = open_database(database)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            current = current_revisions(connection)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise StartupError(
            f"Database: {database} cannot be used: {error}. Restore it from a backup "
            "(README.md, Restore), or move it away to start with an empty one."
        ) from None
    known = known_revisions()
    if current == head_revisions():
        return
    if unknown := current - known.keys():
        logger.warning(
            "The database is at revision %s, which this code does not know: "
            "a newer release has migrated it. Serving it as it is.",
            ", ".join(sorted(unknown)),
        )
        return
    run_alembic(database)


def run_alembic(database: Path) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(toml_file=PROJECT_ROOT / "pyproject.toml", attributes={"database": database})
    try:
        command.upgrade(config, "head")
    except Exception as error:
        logger.exception("Migration failed")
        raise StartupError(
            f"Database: the migration failed ({type(error).__name__}) and was rolled back; "
            "the log above says why. Correct the revision in migrations/versions and start again."
        ) from None
    logger.info("Database migrated to %s", ", ".join(sorted(head_revisions())))


def run_environment(metadata: "MetaData", settings: type[ChassisSettings]) -> None:
    """What migrations/env.py does: run the revisions Alembic asks for in one transaction.

    Foreign keys are not enforced meanwhile, because SQLite changes a table by replacing it;
    they are checked before the commit.

    Raises:
        RuntimeError: A row refers to one that does not exist.
    """
    from alembic import context
    from sqlalchemy import text

    from app.chassis.database import DatabaseFile, migration_engine

    database = context.config.attributes.get("database") or settings.load().database_path
    require_database(database)
    file = DatabaseFile(database)
    engine = migration_engine(file)
    try:
        with engine.begin() as connection:
            context.configure(
                connection=connection,
                target_metadata=metadata,
                render_as_batch=True,
                transactional_ddl=True,
            )
            context.run_migrations()
            if broken := connection.execute(text("PRAGMA foreign_key_check")).first():
                raise RuntimeError(f"table {broken[0]} has a row whose {broken[2]} is missing")
    finally:
        engine.dispose()
        file.close()
