# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Schema migrations with Alembic, run once at start before any worker exists.

Importing Alembic takes a third of a second. So the revisions are first compared without it, and
Alembic is loaded only when there is something to do.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from app.chassis import assembly, revisions
from app.chassis.assembly import ChassisSettings
from app.chassis.errors import StartupError
from app.chassis.revisions import RENAME, Schema, schemas, shared_names
from app.chassis.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from alembic.operations import MigrationScript
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection, MetaData, Table
    from sqlalchemy.schema import SchemaItem

logger = logging.getLogger(__name__)


class Ground(Protocol):
    """Database of an engine to run revisions on, with the name that messages have for it.

    `connected` is a context with a connection of the driver, to look at the database. `locked` is
    one in which nobody else changes the schema, and `migrated` one within it, with the connection
    of a migration, and the unmanaged tables. `unseen` yields a line for each part of the
    models that the database lacks and Alembic overlooks.
    """

    name: str

    @property
    def options(self) -> Mapping[str, Any]: ...
    def connected(self) -> AbstractContextManager[Any]: ...
    def table_names(self, connection: Any) -> set[str]: ...
    def locked(self) -> AbstractContextManager[None]: ...
    def migrated(self, line: Schema) -> "AbstractContextManager[tuple[Connection, set[str]]]": ...
    def unseen(self, connection: "Connection", tables: "Iterable[Table]") -> Iterator[str]: ...


def upgrade(database: ChassisSettings | Path) -> None:
    """Bring the database to this code's newest revision, and create it if it is missing.

    The upgrade of each line is one transaction. A crash in the middle leaves nothing of it behind.

    Args:
        database: The settings that say where it is, or the file of one.

    Raises:
        StartupError: It is no database, its tables have no revision, or a migration failed.
    """
    for schema in schemas():
        revisions.require_line(schema)
    with assembly.engine.migrating(database) as ground:
        if lines_behind(ground):
            with ground.locked():
                # Another process may have run them while this one waited for the lock
                for schema in lines_behind(ground):
                    run_alembic(ground, schema)


def lines_behind(ground: Ground) -> list[Schema]:
    """Return the lines with revisions that have not been run on the database.

    Raises:
        StartupError: They cannot be run on it.
    """
    with ground.connected() as connection:
        tables = ground.table_names(connection)
        require_own_tables(ground.name, connection, tables)
        return [schema for schema in schemas() if is_behind(connection, tables, schema)]


def require_own_tables(name: str, connection: Any, tables: set[str]) -> None:
    """Refuse a database with tables of unknown origin.

    Raises:
        StartupError: There are tables, and no revision says how they were made.
    """
    if found := revisions.foreign_tables(connection, tables):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise StartupError(
            f"Database: {name} has tables ({', '.join(found[:3])}{more}) and no revision. If "
            f"they are this service's, {revisions.ACCEPT_TABLES}; if not, correct DATABASE_URL."
        )


def is_behind(connection: Any, tables: set[str], schema: Schema) -> bool:
    """Return whether the line's revisions have to be run.

    Raises:
        StartupError: They would create a table that exists already and is not theirs.
    """
    current = revisions.current_revision(connection, tables, schema)
    known = revisions.read_revisions(schema.versions)
    if unknown := current - known.keys():
        logger.warning(
            "The database is at revision %s, which this code does not know: "
            "a newer release has migrated it. Serving it as it is.",
            ", ".join(sorted(unknown)),
        )
        return False
    taken = set() if current else tables & set(schema.tables)
    if taken:
        raise StartupError(
            f"Database: the feature {schema.name} needs a table {min(taken)!r}, and you have one. "
            f"Rename yours in a revision first, or leave {schema.name} out."
        )
    return current != revisions.heads_of(known)


def run_alembic(ground: Ground, schema: Schema) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    attributes = {"ground": ground, "schema": schema}
    if schema.tables:
        config = Config(attributes=attributes)
        script_location = str(schema.versions.parent).replace("%", "%%")
        config.set_main_option("script_location", script_location)
    else:
        config = Config(toml_file=PROJECT_ROOT / "pyproject.toml", attributes=attributes)
    try:
        command.upgrade(config, "head")
    except Exception as error:
        outcome = f"was rolled back: {error}"
        if not isinstance(error, CommandError):
            logger.exception("Migration failed")
            kind = type(error).__name__
            outcome = f"failed ({kind}) and was rolled back; the log above says why"
        raise StartupError(
            f"Database: the migration {outcome}. Correct the revision in "
            f"{revisions.directory(schema)}, or the rows that it stumbles over, and start again."
        ) from None
    heads = revisions.heads_of(revisions.read_revisions(schema.versions))
    logger.info("Database migrated to %s", ", ".join(sorted(heads)))


def run_environment(metadata: "MetaData", settings: type[ChassisSettings]) -> None:
    """Run the revisions that Alembic asks for in one transaction, for each env.py.

    Raises:
        alembic.util.CommandError: A revision loses something, or a start would be refused. Alembic
            shows it as one line.
    """
    from alembic import context
    from alembic.util import CommandError

    given = context.config.attributes
    schema = given.get("schema") or schemas()[-1]
    if "ground" in given:
        run_revisions(given["ground"], schema, metadata)
        return
    try:
        database = given.get("database")
        if database is None:  # This is a command of Alembic, which runs without a start
            database = settings.load()
            assembly.engine.prepare(database)
        with assembly.engine.migrating(database) as ground, ground.locked():
            run_revisions(ground, schema, metadata)
    except StartupError as error:
        raise CommandError(str(error)) from None


def run_revisions(ground: Ground, schema: Schema, metadata: "MetaData") -> None:
    from alembic import context

    existing = "existing" in context.get_x_argument()
    for feature in revisions.FEATURES:
        # The service's tables may refer to the feature's, so the metadata has to know them
        import_module(f"app.chassis.{feature.name}.models")
    with ground.migrated(schema) as (connection, left_out):
        context.configure(
            connection=connection,
            target_metadata=metadata,
            transactional_ddl=True,
            version_table=schema.version_table,
            include_object=belongs_to(schema, left_out),
            # Alembic sees an empty database, so that the revision also makes what exists
            include_name=(lambda *_: False) if existing else None,
            process_revision_directives=directives(
                ground, metadata, schema, left_out, existing=existing
            ),
            **ground.options,
        )
        context.run_migrations()


def directives(
    ground: Ground,
    metadata: "MetaData",
    schema: Schema,
    unmanaged: set[str],
    *,
    existing: bool,
) -> Callable[["MigrationContext", object, "list[MigrationScript]"], None]:
    """Return the hook that checks each revision that Alembic makes by comparing."""

    def look(context: "MigrationContext", _: object, scripts: "list[MigrationScript]") -> None:
        from alembic.util import CommandError

        if shared := shared_names(metadata):
            raise CommandError(f"{'; '.join(shared)}. Alembic would see one of them: {RENAME}.")
        theirs = {*revisions.names_of_features(), schema.version_table}
        if left := sorted(unmanaged - metadata.tables.keys() - theirs):
            logger.warning(
                "Left as they are, because Alembic cannot compare them or no revision has made "
                "them: %s",
                ", ".join(left),
            )
        assert context.connection is not None
        include = belongs_to(schema)
        own = [one for one in metadata.tables.values() if include(one, one.name, "table")]
        for line in ground.unseen(context.connection, own):
            logger.warning(line)
        if existing:
            accept_tables(scripts)

    return look


def accept_tables(scripts: "list[MigrationScript]") -> None:
    """Let a revision create only what is missing.

    The command is `alembic -x existing revision --autogenerate`.
    """
    from alembic.operations.ops import CreateIndexOp, CreateTableOp, ModifyTableOps

    assert scripts[0].upgrade_ops is not None
    for operation in scripts[0].upgrade_ops.ops:
        inner = operation.ops if isinstance(operation, ModifyTableOps) else [operation]
        for one in inner:
            if isinstance(one, CreateTableOp | CreateIndexOp):
                one.if_not_exists = True


def belongs_to(schema: Schema, unmanaged: Iterable[str] = ()) -> Callable[..., bool]:
    """Return the filter for the tables that Alembic compares in a line of revisions.

    A feature's line has the tables of the feature. The service's line has all tables that neither
    belong to a feature nor are unmanaged.
    """
    theirs = revisions.names_of_features()

    def include_object(
        item: "SchemaItem", name: str, kind: str, reflected: bool = False, model: object = None
    ) -> bool:
        if kind != "table":
            return True
        if reflected and model is None and name in unmanaged:
            return False
        return name in schema.tables if schema.tables else name not in theirs

    return include_object
