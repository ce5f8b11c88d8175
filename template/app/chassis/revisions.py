# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Lines of revisions and the checks on them, without Alembic, which takes 0.3 s to import.

The service's own tables have their revisions in migrations/. Each feature of the template has its
own tables and revisions, which come with the template's updates. They form a separate line of
revisions, so that they never have to fit into the service's line.
"""

import ast
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.chassis import answers
from app.chassis.checks.finding import Finding, failed, ok, skipped, warning
from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData, Table

VERSIONS: Final = PROJECT_ROOT / "migrations" / "versions"

WORD: Final = re.compile(r"\w+")


class Schema(NamedTuple):
    """Line of revisions in a directory, and the table in which the database notes the last one.

    `tables` are the tables that a feature owns. The service's own line lists none, and owns the
    rest.
    """

    name: str
    versions: Path
    version_table: str
    tables: tuple[str, ...] = ()


HERE: Final = Path(__file__).parent

FEATURES: Final = tuple(
    Schema(name, HERE / name / "migrations/versions", f"alembic_version_{name}", tables)
    for name, tables in answers.TABLES.items()
)

ACCEPT_TABLES: Final = (
    "make a first revision that accepts them: "
    '`uv run alembic -x existing revision --autogenerate -m "what there was"`'
)

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


def current_revisions(connection: Any, tables: Collection[str]) -> frozenset[str]:
    """Return the revisions of the database, or none if it was never migrated.

    Args:
        connection: Connection of the driver. Its `execute` returns rows.
        tables: Names of the tables in the database.
    """
    found = (current_revision(connection, tables, schema) for schema in schemas())
    return frozenset().union(*found)


def current_revision(connection: Any, tables: Collection[str], schema: Schema) -> frozenset[str]:
    if schema.version_table not in tables:
        return frozenset()
    rows = connection.execute(f"SELECT version_num FROM {schema.version_table}")  # noqa: S608
    return frozenset(version for (version,) in rows)


def foreign_tables(connection: Any, tables: Collection[str]) -> list[str]:
    """Return the tables made without migrations, unless a revision of the service accepts them."""
    line = schemas()[-1]
    if current_revision(connection, tables, line) or accepts_tables(line):
        return []
    return sorted(set(tables) - names_of_features() - {line.version_table})


def accepts_tables(schema: Schema) -> bool:
    """Return whether a revision says that what it creates may exist already."""
    files = schema.versions.glob("*.py")
    return any("if_not_exists=True" in file.read_text(encoding="utf-8") for file in files)


def names_of_features() -> set[str]:
    return {name for feature in FEATURES for name in (*feature.tables, feature.version_table)}


def is_migrated(current: frozenset[str], known: Iterable[str], heads: frozenset[str]) -> bool:
    """Return whether this code can serve the database.

    A revision that this code does not know comes from a newer release. After a rollback the
    database keeps its schema, so the older code has to serve it.
    """
    return current == heads or bool(current - set(known))


def words_of(schema: Schema) -> set[str]:
    """Return the words in a line's revisions, among them the names of all tables that they make."""
    files = schema.versions.glob("*.py")
    return {word for file in files for word in WORD.findall(file.read_text(encoding="utf-8"))}


def missing_checks(
    connection: "Connection", tables: "Iterable[Table]"
) -> Iterator[tuple[str, str]]:
    """Yield each table with fewer check constraints than its model, and the names of the missing.

    Alembic does not compare them, even for a table that it creates.
    """
    from sqlalchemy import CheckConstraint, inspect

    inspector = inspect(connection)
    for table in tables:
        if not inspector.has_table(table.name):
            continue
        wanted = [one.name for one in table.constraints if isinstance(one, CheckConstraint)]
        found = inspector.get_check_constraints(table.name)
        if len(wanted) > len(found):
            names = {one["name"] for one in found}
            yield table.name, ", ".join(str(name) for name in wanted if name not in names)


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


def directory(schema: Schema) -> str:
    return os.path.relpath(schema.versions, PROJECT_ROOT)


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


def check_names(metadata: "MetaData") -> Finding:
    """Check that Alembic can tell every constraint from the others."""
    name = "models.names"
    if shared := shared_names(metadata):
        return failed(name, "; ".join(shared), RENAME)
    forms = map(str, metadata.naming_convention.values())
    if any(re.search(r"\(column_0_(name|label|key)\)", form) for form in forms):
        return warning(
            name,
            "constraints are named by their first column: a second one that begins with the same "
            "column would have the same name, and no migration",
            RENAME,
        )
    return ok(name, "each constraint has a name of its own")


def check_order() -> Finding:
    """Check that each line of revisions has an order, which the start needs."""
    name = "database.revisions"
    for line in schemas():
        try:
            require_line(line)
        except StartupError as error:
            verdict, _, advice = str(error).removeprefix("Database: ").partition("; ")
            return failed(name, f"{verdict}: the next start refuses them", advice)
    return ok(name, "in order, to one newest")


def check_standing(current: frozenset[str], foreign: Sequence[str], order: Finding) -> Finding:
    """Compare the revisions of the database with those of this code.

    Args:
        current: The revisions of the database.
        foreign: The tables in it that were made without migrations.
        order: The finding of check_order.
    """
    name = "database.schema"
    heads = head_revisions()
    if foreign:
        verdict = f"no revision, and tables ({', '.join(foreign)})"
        return failed(name, verdict, ACCEPT_TABLES)
    shown = f"at {', '.join(sorted(current)) or 'no revision'}"
    if current == heads:
        return ok(name, f"{shown}, this code's newest")
    if order.status == "failed":
        return skipped(name, f"{shown}; the revisions have to be put right first")
    if is_migrated(current, known_revisions(), heads):
        return warning(
            name,
            f"{shown}, which this code does not know: a newer release has migrated it",
            "deploy that release again when you can",
        )
    return warning(
        name,
        f"{shown}, and this code needs {', '.join(sorted(heads))}",
        "the next start migrates it; `python -m app migrate` does it now",
    )
