# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Schema migrations with Alembic, run once at start before any worker exists.

Importing Alembic takes a third of a second. So the revision is first compared with plain SQLite,
and Alembic is loaded only when there is something to do.

The service's own tables have their revisions in migrations/. Each feature of the template has its
own tables and revisions, which come with the template's updates. They form a separate line of
revisions, so that they never have to fit into the service's line.
"""

import ast
import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from app.chassis import answers, integrity, storage
from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT, CoreSettings
from app.chassis.sqlite import MAGIC, open_database, sqlite3

if TYPE_CHECKING:
    from alembic.operations import MigrationScript
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection, MetaData
    from sqlalchemy.schema import SchemaItem

logger = logging.getLogger(__name__)

HERE: Final = Path(__file__).parent

VERSIONS: Final = PROJECT_ROOT / "migrations" / "versions"


class Schema(NamedTuple):
    """Line of revisions in a directory, and the table in which the database notes the last one.

    `tables` are the tables that a feature owns. The service's own line lists none, and owns the
    rest.
    """

    name: str
    versions: Path
    version_table: str
    tables: tuple[str, ...] = ()


FEATURES: Final = tuple(
    Schema(name, HERE / name / "migrations/versions", f"alembic_version_{name}", tables)
    for name, tables in answers.TABLES.items()
)

ACCEPT_TABLES: Final = (
    "make a first revision that accepts them: "
    '`uv run alembic -x existing revision --autogenerate -m "what there was"`'
)

DROPPED: Final = re.compile(
    r"\b(?:DROP\s+(?:TRIGGER|VIEW|INDEX|TABLE)\s+(?:IF\s+EXISTS\s+)?|ALTER\s+TABLE\s+)"
    r"(?:main\.)?(?:\"([^\"]+)\"|'([^']+)'|`([^`]+)`|\[([^\]]+)\]|(\w+))",
    re.IGNORECASE,
)
"""Name, in any quotes, of what a statement drops or renames."""

IN_THE_WAY: Final = re.compile(r"error in (view|trigger) (.+?)(?: after rename)?: no such table")
"""SQLite's error when it cannot rename a rebuilt table, because something reads from it."""

LOSES: Final = {
    "table": re.compile(
        r"\b(?:AUTOINCREMENT|CHECK|COLLATE|ON\s+DELETE\s+(?:CASCADE|SET|RESTRICT)|ON\s+CONFLICT)\b"
    ),
    "index": re.compile(r"\b(?:COLLATE\s+\w+|DESC)\b"),
}
"""Words in the SQL of a table or an index that Alembic may lose when it writes it again."""

QUOTED: Final = re.compile(r"\"[^\"]*\"|'[^']*'|`[^`]*`")

WORD: Final = re.compile(r"\w+")

RENAME: Final = (
    "give one a name of its own, or name all by all of their columns, with column_0_N_name in the "
    "naming convention of app/models.py (docs/upgrading.md of the template, 0.4.0)"
)


def schemas() -> list[Schema]:
    """Return all lines of revisions. The service's is last, because it may refer to a feature's."""
    return [*FEATURES, Schema("service", VERSIONS, "alembic_version")]


def known_revisions() -> dict[str, tuple[str, ...]]:
    """Return every revision and the revisions that it follows."""
    found: dict[str, tuple[str, ...]] = {}
    for schema in schemas():
        found |= read_revisions(schema.versions)
    return found


def read_revisions(versions: Path) -> dict[str, tuple[str, ...]]:
    """Return a line's revisions and what each one follows, without running the files."""
    found = {}
    for file in sorted(versions.glob("*.py")):
        values = {}
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(target, ast.Name) and target.id in {"revision", "down_revision"}:
                    values[target.id] = ast.literal_eval(node.value)
        if "revision" in values:
            parents = values.get("down_revision") or ()
            found[values["revision"]] = (parents,) if isinstance(parents, str) else tuple(parents)
    return found


def head_revisions() -> frozenset[str]:
    """Return the revisions of every line that no other revision follows."""
    return heads_of(known_revisions())


def heads_of(revisions: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    followed = {name for parents in revisions.values() for name in parents}
    return frozenset(revisions.keys() - followed)


def current_revisions(connection: sqlite3.Connection) -> frozenset[str]:
    """Return the revisions of the database, or none if it was never migrated.

    Raises:
        sqlite3.DatabaseError: The file is not a readable database.
    """
    found = (current_revision(connection, schema) for schema in schemas())
    return frozenset().union(*found)


def current_revision(connection: sqlite3.Connection, schema: Schema) -> frozenset[str]:
    if schema.version_table not in table_names(connection):
        return frozenset()
    rows = connection.execute(f"SELECT version_num FROM {schema.version_table}")  # noqa: S608
    return frozenset(version for (version,) in rows)


def table_names(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in rows}


def foreign_tables(connection: sqlite3.Connection) -> list[str]:
    """Return the tables made without migrations, unless a revision of the service accepts them."""
    line = schemas()[-1]
    if current_revision(connection, line) or accepts_tables(line):
        return []
    found = table_names(connection) - names_of_features() - {line.version_table}
    return sorted(name for name in found if not name.startswith(("sqlite_", "_litestream_")))


def accepts_tables(schema: Schema) -> bool:
    """Return whether a revision says that what it creates may exist already."""
    files = schema.versions.glob("*.py")
    return any("if_not_exists=True" in file.read_text(encoding="utf-8") for file in files)


def names_of_features() -> set[str]:
    return {name for feature in FEATURES for name in (*feature.tables, feature.version_table)}


def is_migrated(current: frozenset[str], known: Iterable[str], heads: frozenset[str]) -> bool:
    """Return whether this code can serve the database.

    A revision that this code does not know comes from a newer release. After a rollback the volume
    keeps its schema, so the older code has to serve it.
    """
    return current == heads or bool(current - set(known))


def require_database(database: Path) -> None:
    """Refuse a file that is no database, and create a database if there is no file.

    SQLite takes an empty file for a new database, and deletes the write-ahead log beside it. The
    service never leaves an empty file, because a new one gets its name only when it is complete.

    Raises:
        StartupError: The file is empty or not a database.
    """
    try:
        with database.open("rb") as file:
            start = file.read(len(MAGIC))
    except FileNotFoundError:
        logger.warning("There is no database at %s: making a new, empty one", database)
        create_database(database)
        return
    if start != MAGIC:
        raise unusable(database, f"the file is {'not a database' if start else 'empty'}")


def unusable(database: Path, reason: object) -> StartupError:
    return StartupError(
        f"Database: {database} cannot be used: {reason}. Restore it from a backup "
        "(README.md, Restore), or move it away to start with an empty one."
    )


def create_database(database: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=database.parent) as directory:
        fresh = Path(directory, database.name)
        connection = open_database(fresh, create=True)
        # This makes SQLite write the file, and wait until it is on the disk
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        # A link, unlike a rename, replaces no file that has appeared meanwhile
        with suppress(FileExistsError):
            os.link(fresh, database)


def require_line(schema: Schema) -> None:
    """Refuse revisions that Alembic cannot put in order.

    Raises:
        StartupError: The revisions have a fault. The message says what to do.
    """
    revisions = read_revisions(schema.versions)
    heads = heads_of(revisions)
    if missing := {name for parents in revisions.values() for name in parents} - revisions.keys():
        names = ", ".join(sorted(missing))
        fault = f"{names} is missing, and another one follows it; bring it back"
    elif len(heads) > 1:
        names = ", ".join(sorted(heads))
        fault = f"{names} are all the newest; join them: `uv run alembic merge heads`"
    elif revisions and not heads:
        fault = "each follows another one; one has to be the newest"
    else:
        return
    raise StartupError(f"Database: of the revisions in {directory(schema)} {fault}.")


def upgrade(database: Path) -> None:
    """Bring the database to this code's newest revision, and create it if it is missing.

    The upgrade of each line is one transaction. A crash in the middle leaves nothing of it behind.

    Raises:
        StartupError: The file is no database, its tables have no revision, or a migration failed.
    """
    for schema in schemas():
        require_line(schema)
    require_database(database)
    try:
        connection = open_database(database)
        try:
            require_own_tables(database, connection)
            connection.execute("PRAGMA journal_mode=WAL")
            behind = [schema for schema in schemas() if is_behind(connection, schema)]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise unusable(database, error) from None
    for schema in behind:
        run_alembic(database, schema)


def require_own_tables(database: Path, connection: sqlite3.Connection) -> None:
    """Refuse a database with tables of unknown origin.

    Raises:
        StartupError: There are tables, and no revision says how they were made.
    """
    if found := foreign_tables(connection):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise StartupError(
            f"Database: {database} has tables ({', '.join(found[:3])}{more}) and no revision. If "
            f"they are this service's, {ACCEPT_TABLES}; if not, correct DATABASE_URL."
        )


def is_behind(connection: sqlite3.Connection, schema: Schema) -> bool:
    """Return whether the line's revisions have to be run.

    Raises:
        StartupError: They would create a table that exists already and is not theirs.
    """
    current = current_revision(connection, schema)
    known = read_revisions(schema.versions)
    if unknown := current - known.keys():
        logger.warning(
            "The database is at revision %s, which this code does not know: "
            "a newer release has migrated it. Serving it as it is.",
            ", ".join(sorted(unknown)),
        )
        return False
    taken = set() if current else table_names(connection) & set(schema.tables)
    if taken:
        raise StartupError(
            f"Database: the feature {schema.name} needs a table {min(taken)!r}, and you have one. "
            f"Rename yours in a revision first, or leave {schema.name} out."
        )
    return current != heads_of(known)


def run_alembic(database: Path, schema: Schema) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    attributes = {"database": database, "schema": schema}
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
            f"Database: the migration {outcome}. Correct the revision in {directory(schema)}, or "
            "the rows that it stumbles over, and start again."
        ) from None
    heads = heads_of(read_revisions(schema.versions))
    logger.info("Database migrated to %s", ", ".join(sorted(heads)))


def directory(schema: Schema) -> str:
    return os.path.relpath(schema.versions, PROJECT_ROOT)


def run_environment(metadata: "MetaData", settings: type[CoreSettings]) -> None:
    """Run the revisions that Alembic asks for in one transaction, for each env.py.

    Foreign keys are not enforced meanwhile, because SQLite changes a table by replacing it.

    Raises:
        alembic.util.CommandError: A revision leaves a row without its parent, or loses what
            belongs to a table.
    """
    from alembic import context

    from app.chassis.database import DatabaseFile, migration_engine

    existing = "existing" in context.get_x_argument()
    for feature in FEATURES:
        # The service's tables may refer to the feature's, so the metadata has to know them
        import_module(f"app.chassis.{feature.name}.models")
    database = context.config.attributes.get("database") or prepared(settings)
    schema = context.config.attributes.get("schema") or schemas()[-1]
    file = DatabaseFile(database)
    engine = migration_engine(file)
    try:
        with engine.begin() as connection, losses_refused(connection) as driver:
            left_out = unmanaged(driver, schema)
            context.configure(
                connection=connection,
                target_metadata=metadata,
                render_as_batch=True,
                transactional_ddl=True,
                version_table=schema.version_table,
                include_object=belongs_to(schema, left_out),
                # Alembic sees an empty database, so that the revision also makes what exists
                include_name=(lambda *_: False) if existing else None,
                process_revision_directives=directives(
                    metadata, schema, left_out, existing=existing
                ),
            )
            context.run_migrations()
    finally:
        engine.dispose()
        file.close()


@contextmanager
def losses_refused(connection: "Connection") -> Iterator[sqlite3.Connection]:
    """Refuse revisions that lose what SQLite drops with a table, or the parent of a row.

    Rows that had no parent before are left as they are. A loss is meant if a statement names it.

    Raises:
        alembic.util.CommandError: Something is lost.
    """
    from alembic.util import CommandError
    from sqlalchemy import event
    from sqlalchemy.exc import OperationalError

    driver: Any = connection.connection.dbapi_connection
    tables, orphans = table_names(driver), integrity.find_orphans(driver)
    beside, rules, orders = beside_tables(driver), *find_rules(driver)
    said: list[str] = []
    event.listen(connection, "before_cursor_execute", lambda *seen: said.append(seen[2]))
    for line in integrity.describe(orphans):
        logger.warning("Before the migration, and left as it is: %s", line)
    try:
        yield driver
    except OperationalError as error:
        if (reader := IN_THE_WAY.search(str(error.orig))) is None:
            raise
        raise CommandError(
            f"the {reader[1]} {reader[2]} reads from a table that is rebuilt, so SQLite refuses "
            "it: drop it in the same revision before the change, and create it again after it"
        ) from None
    left, named = integrity.find_orphans(driver), names_in(said)
    if broken := integrity.newly_orphaned(orphans, left, (tables, table_names(driver))):
        raise CommandError("; ".join(integrity.describe(broken)))
    rules_now, orders_now = find_rules(driver)
    for rule, name in lost_rules(rules, rules_now):
        logger.warning("The migration has taken %s from table %s", rule, name)
    if lost := find_lost(driver, beside, named):
        raise CommandError(
            f"it would lose {', '.join(lost)}, which SQLite drops with a table that is rebuilt: "
            "create it again in the same revision, after the change"
        )
    changed = [
        f"{rule} from the index {name}"
        for rule, name in lost_rules(orders, orders_now)
        if name.lower() not in named
    ]
    if changed:
        raise CommandError(
            f"it would take {', '.join(changed)}, which Alembic does not write again: drop it in "
            "the same revision, and create it again after the change"
        )


def prepared(settings: type[CoreSettings]) -> Path:
    """Prepare and return the database for a command of Alembic, which runs without a start.

    Raises:
        CommandError: A start would be refused. Alembic shows the error as one line.
    """
    from alembic.util import CommandError

    try:
        loaded = settings.load()
        storage.prepare(loaded)
        require_database(loaded.database_path)
    except StartupError as error:
        raise CommandError(str(error)) from None
    return loaded.database_path


def beside_tables(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """Return kind, name and table of what Alembic does not know, such as triggers and views."""
    # SQLite notes an expression of an index as cid -2
    rows = connection.execute(
        "SELECT type, name, tbl_name FROM sqlite_master AS found "
        "WHERE type IN ('trigger', 'view') OR sql LIKE 'CREATE VIRTUAL TABLE%' OR type = 'index' "
        "AND EXISTS (SELECT 1 FROM pragma_index_xinfo(found.name) WHERE cid = -2)"
    )
    return {(kind, name): table for kind, name, table in rows}


Rules: TypeAlias = dict[str, Counter[str]]
"""Rules that Alembic may lose, counted in the SQL of each table or index."""


def find_rules(connection: sqlite3.Connection) -> tuple[Rules, Rules]:
    """Return the rules of the tables and of the indexes, by their names."""
    found: dict[str, Rules] = {"table": {}, "index": {}}
    query = "SELECT type, name, sql FROM sqlite_master WHERE type IN ('table', 'index') ORDER BY 2"
    for kind, name, sql in connection.execute(query):
        words = LOSES[kind].findall(QUOTED.sub("", sql or "").upper())
        found[kind][name] = Counter(" ".join(word.split()) for word in words)
    return found["table"], found["index"]


def lost_rules(before: Rules, after: Rules) -> Iterator[tuple[str, str]]:
    """Yield each rule that is gone, and the table or index that is still there without it."""
    for name, found in after.items():
        for rule in before.get(name, found) - found:
            yield rule, name


def names_in(said: Iterable[str]) -> set[str]:
    """Return the names, in lower case, of what the statements drop or rename."""
    found = (names for statement in said for names in DROPPED.findall(statement))
    return {"".join(names).lower() for names in found}


def find_lost(
    connection: sqlite3.Connection, before: Mapping[tuple[str, str], str], named: set[str]
) -> list[str]:
    """Return what is gone although its table exists, and is not named."""
    after, tables = beside_tables(connection), table_names(connection)
    return [
        f"the {kind} {name}"
        for (kind, name), table in before.items()
        if (kind, name) not in after
        and name.lower() not in named
        and (table in tables or table == name)
    ]


def unmanaged(connection: sqlite3.Connection, schema: Schema) -> set[str]:
    """Return the unmanaged tables, which no revision has made, and virtual and shadow tables.

    Alembic would drop them, because no model has them.
    """
    kinds = connection.execute("SELECT name, type FROM pragma_table_list WHERE schema = 'main'")
    files = schema.versions.glob("*.py")
    words = {word for file in files for word in WORD.findall(file.read_text(encoding="utf-8"))}
    return {
        name
        for name, kind in kinds
        if kind in {"virtual", "shadow"} or (kind == "table" and name not in words)
    }


def directives(
    metadata: "MetaData", schema: Schema, unmanaged: set[str], *, existing: bool
) -> Callable[["MigrationContext", object, "list[MigrationScript]"], None]:
    """Return the hook that checks each revision that Alembic makes by comparing."""

    def look(context: "MigrationContext", _: object, scripts: "list[MigrationScript]") -> None:
        from alembic.util import CommandError

        if shared := shared_names(metadata):
            raise CommandError(f"{'; '.join(shared)}. Alembic would see one of them: {RENAME}.")
        theirs = {*names_of_features(), schema.version_table, "sqlite_schema", "sqlite_sequence"}
        if left := sorted(unmanaged - metadata.tables.keys() - theirs):
            logger.warning(
                "Left as they are, because Alembic cannot compare them or no revision has made "
                "them: %s",
                ", ".join(left),
            )
        for line in unseen(context, metadata, schema):
            logger.warning(line)
        if existing:
            accept_tables(scripts)

    return look


def shared_names(metadata: "MetaData") -> list[str]:
    """Return a line for each name that several constraints or indexes of a table share."""
    lines = []
    for table in metadata.tables.values():
        named = [one.name for one in table.constraints] + [one.name for one in table.indexes]
        lines += [
            f"{count} constraints of table {table.name} have the name {name}"
            for name, count in Counter(named).items()
            if count > 1 and isinstance(name, str)
        ]
    return lines


def unseen(context: "MigrationContext", metadata: "MetaData", schema: Schema) -> Iterator[str]:
    """Yield a line for what the models have and the database has not, where Alembic is blind.

    It compares no check constraints, and leaves out indexes on expressions, even for a table that
    it creates.
    """
    from alembic.util.sqla_compat import is_expression_index
    from sqlalchemy import CheckConstraint, inspect

    assert context.connection is not None
    inspector = inspect(context.connection)
    rows = context.connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'index'")
    indexes = {name for (name,) in rows}
    include = belongs_to(schema)
    for table in metadata.tables.values():
        if not include(table, table.name, "table"):
            continue
        for index in table.indexes:
            if index.name not in indexes and is_expression_index(index):
                yield (
                    f"Table {table.name} has no index {index.name} in the database, and Alembic "
                    "writes none on an expression: the revision needs op.execute('CREATE INDEX')"
                )
        if not inspector.has_table(table.name):
            continue
        wanted = [one.name for one in table.constraints if isinstance(one, CheckConstraint)]
        found = inspector.get_check_constraints(table.name)
        if len(wanted) > len(found):
            names = {one["name"] for one in found}
            missing = ", ".join(str(name) for name in wanted if name not in names)
            yield (
                f"Table {table.name} has no {missing} in the database, and Alembic writes no check "
                "constraint: add create_check_constraint to the revision (batch_alter_table)"
            )


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
    theirs = names_of_features()

    def include_object(
        item: "SchemaItem", name: str, kind: str, reflected: bool = False, model: object = None
    ) -> bool:
        if kind != "table":
            return True
        if reflected and model is None and name in unmanaged:
            return False
        return name in schema.tables if schema.tables else name not in theirs

    return include_object
