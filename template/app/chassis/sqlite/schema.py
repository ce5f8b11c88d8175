# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Schema of the database, how it is created, and what a migration must not lose.

SQLite changes a table by replacing it, and drops with it what Alembic does not write again.
"""

import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from app.chassis import revisions
from app.chassis.errors import StartupError
from app.chassis.sqlite import integrity
from app.chassis.sqlite.driver import MAGIC, open_database, sqlite3

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

logger = logging.getLogger(__name__)

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


class Ground:
    """Database file that revisions are run on."""

    options: Final = {"render_as_batch": True}

    def __init__(self, database: Path) -> None:
        require_database(database)
        self.database = database
        self.name = str(database)

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection to look at the database, which has its journal mode afterwards.

        Raises:
            StartupError: The file is no database, or is damaged.
        """
        try:
            with closing(open_database(self.database)) as connection:
                yield connection
                connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.DatabaseError as error:
            raise unusable(self.database, error) from None

    def table_names(self, connection: sqlite3.Connection) -> set[str]:
        return table_names(connection)

    def locked(self) -> AbstractContextManager[None]:
        """Do nothing, because whoever runs revisions has the file's lock, or a file of its own."""
        return nullcontext()

    @contextmanager
    def migrated(self, line: revisions.Schema) -> "Iterator[tuple[Connection, set[str]]]":
        """Yield the connection of a migration, and the unmanaged tables.

        Foreign keys are not enforced meanwhile, because SQLite changes a table by replacing it.

        Raises:
            alembic.util.CommandError: A revision leaves a row without its parent, or loses what
                belongs to a table.
        """
        from app.chassis.sqlite.engines import migration_engine
        from app.chassis.sqlite.file import DatabaseFile

        file = DatabaseFile(self.database)
        engine = migration_engine(file)
        try:
            with engine.begin() as connection, losses_refused(connection) as driver:
                yield connection, unmanaged(driver, line)
        finally:
            engine.dispose()
            file.close()

    def unseen(self, connection: "Connection", tables: "Iterable[Table]") -> Iterator[str]:
        """Yield a line for each part of the models that the database lacks and Alembic overlooks.

        It compares no check constraints, and leaves out indexes on expressions.
        """
        from alembic.util.sqla_compat import is_expression_index

        tables = list(tables)
        rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'index'")
        indexes = {name for (name,) in rows}
        for table in tables:
            for index in table.indexes:
                if index.name not in indexes and is_expression_index(index):
                    yield (
                        f"Table {table.name} has no index {index.name} in the database, and "
                        "Alembic writes none on an expression: the revision needs "
                        "op.execute('CREATE INDEX')"
                    )
        for name, missing in revisions.missing_checks(connection, tables):
            yield (
                f"Table {name} has no {missing} in the database, and Alembic writes no check "
                "constraint: add create_check_constraint to the revision (batch_alter_table)"
            )


def table_names(connection: sqlite3.Connection) -> set[str]:
    """Return the tables that revisions or people have made."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in rows if not name.startswith(("sqlite_", "_litestream_"))}


def current_revisions(connection: sqlite3.Connection) -> frozenset[str]:
    """Return the revisions of the database, or none if it was never migrated.

    Raises:
        sqlite3.DatabaseError: The file is not a readable database.
    """
    return revisions.current_revisions(connection, table_names(connection))


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
        "(RUNBOOK.md, Restore), or move it away to start with an empty one."
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


def unmanaged(connection: sqlite3.Connection, line: revisions.Schema) -> set[str]:
    """Return the unmanaged tables, which no revision has made, and virtual and shadow tables.

    Alembic would drop them, because no model has them.
    """
    kinds = connection.execute("SELECT name, type FROM pragma_table_list WHERE schema = 'main'")
    words = revisions.words_of(line)
    return {
        name
        for name, kind in kinds
        if kind in {"virtual", "shadow"}
        or (kind == "table" and name not in words and not name.startswith("sqlite_"))
    }
