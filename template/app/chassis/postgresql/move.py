# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Move of a service's rows from one database to another, there and back.

The whole source is checked before a row is written. The target gets its schema and its rows in
one transaction, which is committed when the counts and checksums of both are the same. So a move
that is killed has changed neither.
"""

import re
import sqlite3
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from sqlalchemy import CheckConstraint, Date, DateTime, Inspector, MetaData, Table, exc, inspect
from sqlalchemy.sql.ddl import sort_tables_and_constraints

from app.chassis import revisions
from app.chassis.postgresql import schema
from app.chassis.postgresql.settings import as_url, require_address
from app.chassis.postgresql.stores import (
    Address,
    MoveError,
    PostgreSQLAddress,
    PostgreSQLStore,
    SQLiteAddress,
    Store,
)
from app.chassis.postgresql.values import Field, UnfitError, make_field
from app.chassis.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from app.chassis.postgresql.settings import PostgreSQLSettings

SHOWN: Final = 20
"""Maximum number of problems that a move lists."""

EVERY: Final = 5.0
"""Seconds between two lines about the progress."""

SQLITE: Final = re.compile(r"sqlite(?:\+pysqlite|\+aiosqlite)?:///([^?#]+)")

POSTGRESQL: Final = re.compile(r"postgres(?:ql)?(?:\+psycopg)?://")


class Part(NamedTuple):
    """Table on its way, with the columns that have to be written."""

    table: Table
    fields: list[Field]
    keys: list[str]

    @property
    def name(self) -> str:
        return self.table.name

    def query(self, store: Store) -> str:
        """Return the query for all rows, always in the same order."""
        columns = [
            f"CAST({store.quoted(field.name)} AS TEXT)"
            if field.as_text and isinstance(store, PostgreSQLStore)
            else store.quoted(field.name)
            for field in self.fields
        ]
        order = f" ORDER BY {store.quoted(*self.keys)}" if self.keys else ""
        return f"SELECT {', '.join(columns)} FROM {store.quoted(self.name)}{order}"  # noqa: S608

    def key(self, row: Sequence[Any], number: int) -> str:
        """Return words by which a person finds a row."""
        names = [field.name for field in self.fields]
        return told(self.keys, [row[names.index(name)] for name in self.keys]) or f"row {number}"


class Tally:
    """Count and checksum of a table's rows, in any order."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0

    def add(self, row: tuple[Any, ...]) -> None:
        digest = blake2b(repr(row).encode(errors="surrogatepass"), digest_size=16).digest()
        self.count += 1
        self.total = (self.total + int.from_bytes(digest)) % 2**128

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def move(
    source: str,
    target: str,
    leave: Collection[str],
    settings: "PostgreSQLSettings",
    metadata: MetaData,
    migrate: Any,
) -> None:
    """Move all rows, and say what to change afterwards.

    Args:
        source: Address of the database that has the rows.
        target: Address of a database without rows, or of a new file.
        leave: Tables, or columns as TABLE.COLUMN, that may stay behind.
        settings: Settings of the service.
        metadata: Tables of the service.
        migrate: The module migrate, which runs the revisions.

    Raises:
        MoveError: Nothing was written. The message says why.
    """
    old, new = find(source, "SOURCE", settings), find(target, "TARGET", settings)
    if old.name == new.name:
        raise MoveError("SOURCE and TARGET are the same database.")
    began = time.monotonic()
    try:
        with old.reading(settings.lock_timeout) as reading:
            tables = find_tables(reading, metadata, leave)
            with new.writing(settings.lock_timeout) as writing:
                count = carry(reading, writing, tables, migrate)
    except (psycopg.Error, sqlite3.Error, exc.DBAPIError) as error:
        raise MoveError(f"{reason(error)}. {new.name} is as it was.") from None
    seconds = time.monotonic() - began
    print(
        f"Moved {count:,} rows of {len(tables)} tables from {old.name} to {new.name} in "
        f"{seconds:.0f} s. The counts and checksums are the same.\n{advice(new)}"
    )


def find(text: str, which: str, settings: "PostgreSQLSettings") -> Address:
    """Return the place that an argument names.

    Raises:
        MoveError: It is no address of a database.
    """
    if text == "DATABASE_URL":
        return PostgreSQLAddress(settings.direct_url)
    if match := SQLITE.fullmatch(text):
        return SQLiteAddress(Path(PROJECT_ROOT, match[1]).resolve())
    if POSTGRESQL.match(text):
        try:
            require_address(text)
        except ValueError as error:
            raise MoveError(f"{which} {error}.") from None
        return PostgreSQLAddress(as_url(text))
    raise MoveError(
        f"{which} has to be sqlite:///FILE, postgresql://USER:PASSWORD@HOST:PORT/NAME, or "
        "DATABASE_URL for the value of that variable."
    )


def find_tables(source: Store, metadata: MetaData, leave: Collection[str]) -> list[Table]:
    """Return the tables of the service, and refuse a source with other ones.

    Raises:
        MoveError: The source has another schema than this code.
    """
    for feature in revisions.FEATURES:
        import_module(f"app.chassis.{feature.name}.models")
    names = source.table_names(source.driver)
    current = revisions.current_revisions(source.driver, names)
    heads = revisions.head_revisions()
    if current != heads:
        raise MoveError(
            f"{source.name} is at {', '.join(sorted(current)) or 'no revision'}, and this code "
            f"needs {', '.join(sorted(heads))}. Start a service with these revisions on it first."
        )
    others = {name for name in names if not name.startswith("alembic_version")}
    unknown = others - metadata.tables.keys()
    inspector = inspect(source.connection)
    missing = metadata.tables.keys() - others
    for name in others & metadata.tables.keys():
        found = {column["name"] for column in inspector.get_columns(name)}
        known = {column.name for column in metadata.tables[name].columns}
        unknown |= {f"{name}.{column}" for column in found - known}
        missing |= {f"{name}.{column}" for column in known - found}
    if missing:
        raise MoveError(f"{source.name} has no {', '.join(sorted(missing))}, which a model has.")
    if unknown := unknown - set(leave):
        options = " ".join(f"--leave {name}" for name in sorted(unknown))
        raise MoveError(
            f"no model has {', '.join(sorted(unknown))} of {source.name}, so it would stay "
            f"behind. If it may: {options}"
        )
    return list(metadata.tables.values())


def carry(source: Store, target: Store, tables: list[Table], migrate: Any) -> int:
    """Bring the target to its newest revision, move the rows, and compare. Return their number.

    Raises:
        MoveError: The target has other rows, or a row cannot be moved.
    """
    ordered = sort_tables_and_constraints(tables)  # type: ignore[no-untyped-call]
    tables = [table for table, _ in ordered if table is not None]
    names = sorted(table.name for table in tables)
    before = target.table_names(target.driver)
    filled = target.tables_with_rows(sorted(n for n in before if not n.startswith("alembic_")))
    if set(filled) - set(names):
        raise has_rows(target, filled)
    for line in revisions.schemas():
        revisions.require_line(line)
    for line in migrate.lines_behind(target):
        migrate.run_alembic(target, line)
    inspector = inspect(target.connection)
    if absent := set(names) - target.table_names(target.driver):
        raise MoveError(f"no revision makes {', '.join(sorted(absent))}, which a model has.")
    parts = [make_part(table, source, target, inspector) for table in tables]
    if filled:
        if not is_same(source, target, parts):
            raise has_rows(target, filled)
        print(f"{target.name} has all rows already, so nothing is written.", file=sys.stderr)
        return 0
    tallies = look_through(source, parts, inspector)
    target.clear(tables[::-1])
    in_circles = any(table is None and constraints for table, constraints in ordered)
    if in_circles:
        target.defer_references()
    for part in parts:
        copy(source, target, part, tallies[part.name].count)
    target.settle()
    for part in parts:
        reset_ids(source, target, part.table)
        if tally(target, part, reread=True) != tallies[part.name]:
            raise MoveError(f"{part.name} is not the same in {target.name}, which is as it was.")
    source.require_alone()
    return sum(one.count for one in tallies.values())


def has_rows(target: Store, tables: list[str]) -> MoveError:
    return MoveError(
        f"{target.name} has rows already ({', '.join(tables[:3])}). The target has to be a new "
        "file, or a database without rows."
    )


def make_part(table: Table, source: Store, target: Store, inspector: Inspector) -> Part:
    kept = {column["name"]: column for column in inspector.get_columns(table.name)}
    if absent := {column.name for column in table.columns} - kept.keys():
        raise MoveError(
            f"no revision makes {', '.join(sorted(absent))} of {table.name}, which a model has."
        )
    fields = [
        make_field(
            column,
            source.dialect,
            target.dialect,
            kept[column.name]["type"],
            null=kept[column.name]["nullable"],
        )
        for column in table.columns
        if column.computed is None
    ]
    return Part(table, fields, [column.name for column in table.primary_key.columns])


def look_through(source: Store, parts: list[Part], inspector: Inspector) -> dict[str, Tally]:
    """Read every row, and return the count and checksum of each table.

    Raises:
        MoveError: There are rows that cannot be moved. It names the first of them.
    """
    tallies = {part.name: Tally() for part in parts}
    found = list(islice(problems(source, parts, inspector, tallies), SHOWN))
    if found:
        count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
        more = ", and maybe more" if len(found) == SHOWN else ""
        lines = "".join(f"\n  {line}" for line in found)
        raise MoveError(
            f"{count} in {source.name}{more}; nothing was written.{lines}\n"
            "Correct or delete these rows where they are, and begin again."
        )
    return tallies


def problems(
    source: Store, parts: list[Part], inspector: Inspector, tallies: dict[str, Tally]
) -> Iterator[str]:
    """Yield a line for each row that cannot be moved."""
    for part in parts:
        if isinstance(source, PostgreSQLStore):
            beyond = list(times_beyond(source, part))
            yield from beyond
            if beyond:
                continue  # The driver cannot read these rows
        show = Progress("Checked", part.name)
        for number, row in enumerate(source.rows(part.query(source)), 1):
            same = []
            for field, raw in zip(part.fields, row, strict=True):
                try:
                    same.append(field.move(raw)[1])
                except UnfitError as error:
                    yield f"{part.name}, {part.key(row, number)}: {field.name} {error}"
            tallies[part.name].add(tuple(same))
            show.at(number)
        yield from twice(source, part, inspector)
        yield from orphans(source, part, inspector)
        yield from broken_rules(source, part)


def times_beyond(source: Store, part: Part) -> Iterator[str]:
    """Yield a line for each date that PostgreSQL keeps and Python does not know."""
    for column in part.table.columns:
        if isinstance(column.type, Date | DateTime):
            name = source.quoted(column.name)
            condition = f"{name} NOT BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'"
            for key in some_keys(source, part, condition):
                yield f"{part.name}, {key}: {column.name} is not in the years 1 to 9999"


def some_keys(source: Store, part: Part, condition: str, tables: str = "") -> Iterator[str]:
    """Yield words for the first rows that meet a condition of SQL's."""
    name = source.quoted(part.name)
    keys = ", ".join(f"{name}.{source.quoted(key)}" for key in part.keys) or "1"
    query = f"SELECT {keys} FROM {name}{tables} WHERE {condition} LIMIT {SHOWN}"  # noqa: S608
    for row in source.rows(query):
        yield told(part.keys, row) or "a row without a key"


def told(names: Iterable[str], values: Iterable[Any]) -> str:
    return ", ".join(f"{name} {value!r:.80}" for name, value in zip(names, values, strict=False))


def twice(source: Store, part: Part, inspector: Inspector) -> Iterator[str]:
    """Yield a line for each value that occurs twice where the target allows it once."""
    found = [inspector.get_pk_constraint(part.name)["constrained_columns"]]
    found += [one["column_names"] for one in inspector.get_unique_constraints(part.name)]
    for index in inspector.get_indexes(part.name):
        has_condition = any(key.endswith("_where") for key in index.get("dialect_options", {}))
        if index["unique"] and None not in index["column_names"] and not has_condition:
            found.append([name for name in index["column_names"] if name is not None])
    for names in {tuple(columns): columns for columns in found if columns}.values():
        columns = source.quoted(*names)
        filled = " AND ".join(f"{source.quoted(name)} IS NOT NULL" for name in names)
        query = (
            f"SELECT {columns} FROM {source.quoted(part.name)} WHERE {filled} "  # noqa: S608
            f"GROUP BY {columns} HAVING count(*) > 1 LIMIT {SHOWN}"
        )
        for row in source.rows(query):
            yield f"{part.name}, {told(names, row)}: is there more than once"


def orphans(source: Store, part: Part, inspector: Inspector) -> Iterator[str]:
    """Yield a line for each row that refers to a row which is not there."""
    for reference in inspector.get_foreign_keys(part.name):
        pairs = zip(reference["constrained_columns"], reference["referred_columns"], strict=True)
        name, columns = source.quoted(part.name), reference["constrained_columns"]
        joined = " AND ".join(
            f"parent.{source.quoted(theirs)} = {name}.{source.quoted(ours)}"
            for ours, theirs in pairs
        )
        filled = " AND ".join(f"{name}.{source.quoted(one)} IS NOT NULL" for one in columns)
        parent = f"SELECT 1 FROM {source.quoted(reference['referred_table'])} AS parent"  # noqa: S608
        for key in some_keys(source, part, f"{filled} AND NOT EXISTS ({parent} WHERE {joined})"):
            yield (
                f"{part.name}, {key}: {', '.join(columns)} refers to a row of "
                f"{reference['referred_table']} that is not there"
            )


def broken_rules(source: Store, part: Part) -> Iterator[str]:
    """Yield a line for each row that breaks a check constraint of the model."""
    for rule in part.table.constraints:
        if isinstance(rule, CheckConstraint):
            compiled = rule.sqltext.compile(
                dialect=source.dialect, compile_kwargs={"literal_binds": True}
            )
            try:
                with source.attempt():
                    keys = list(some_keys(source, part, f"NOT ({compiled})"))
            except (psycopg.Error, sqlite3.Error):
                continue  # The source does not understand it, so the target will refuse the row
            for key in keys:
                yield f"{part.name}, {key}: breaks the rule {rule.name}"


def copy(source: Store, target: Store, part: Part, count: int) -> None:
    """Write the rows of a table.

    Raises:
        MoveError: The target refuses a row, for a reason that could not be seen before.
    """
    progress = Progress("Copied", part.name, count)

    def rows() -> Iterator[list[Any]]:
        for number, row in enumerate(source.rows(part.query(source)), 1):
            yield [
                field.write(field.read(raw)) for field, raw in zip(part.fields, row, strict=True)
            ]
            progress.at(number)

    try:
        target.write(part.table, [field.name for field in part.fields], rows())
    except (psycopg.errors.DataError, psycopg.errors.IntegrityError) as error:
        where = part.name
        if line := re.search(r"^COPY .*, line (\d+)", error.diag.context or ""):
            numbered = enumerate(source.rows(part.query(source)), 1)
            where += next(
                f", {part.key(row, number)}" for number, row in numbered if number == int(line[1])
            )
        raise MoveError(f"{where}: {reason(error)}. {target.name} is as it was.") from None
    progress.end()


def tally(store: Store, part: Part, *, reread: bool) -> Tally:
    """Return count and checksum of a table as it is in the source, or again in the target."""
    found, progress = Tally(), Progress("Compared", part.name)
    steps = [(field.reread if reread else field.read, field.same) for field in part.fields]
    for row in store.rows(part.query(store)):
        values = zip(steps, row, strict=True)
        found.add(tuple(same(read(raw)) for (read, same), raw in values))
        progress.at(found.count)
    return found


def is_same(source: Store, target: Store, parts: list[Part]) -> bool:
    """Return whether the target has all rows of the source, as after a move."""
    try:
        return all(
            tally(source, part, reread=False) == tally(target, part, reread=True) for part in parts
        )
    except ValueError:
        return False


def reset_ids(source: Store, target: Store, table: Table) -> None:
    """Keep the target from giving an id that the source has given already."""
    if (column := table.autoincrement_column) is not None:
        last = max(store.last_id(table, column.name) for store in (source, target))
        target.begin_after(table, column.name, last)


class Progress:
    """Lines about the progress with a table, which a short one does without."""

    def __init__(self, what: str, name: str, total: int = 0) -> None:
        self.what, self.name = what, name
        self.total = f" of {total:,}" if total else ""
        self.number = 0
        self.due = time.monotonic() + EVERY

    def at(self, number: int) -> None:
        self.number = number
        if number % 1000 == 0 and time.monotonic() >= self.due:
            self.due = time.monotonic() + EVERY
            self.end()

    def end(self) -> None:
        print(
            f"{self.what} {self.number:,}{self.total} rows of {self.name}",
            file=sys.stderr,
            flush=True,
        )


def reason(error: Exception) -> str:
    """Return the first line of a database's error, which has no values of the row."""
    if isinstance(error, exc.DBAPIError) and error.orig is not None:
        return reason(error.orig)
    if isinstance(error, psycopg.Error):
        return (error.diag.message_primary or schema.why(error)).rstrip(".")
    return str(error).partition("\n")[0].rstrip(".")


def advice(target: Address) -> str:
    """Return what has to be changed before the service runs on the target."""
    if isinstance(target, SQLiteAddress):
        lines = (
            f"DATABASE_URL: sqlite:///{target.path}, in production on a volume",
            "DATABASE_UNPOOLED_URL: remove it",
            "the answer: python -m app template update -d database=sqlite",
        )
    else:
        lines = (
            f"DATABASE_URL: the address of {target.name}, which is "
            "${{postgres.DATABASE_URL}} "
            "on Railway",
            "DATABASE_UNPOOLED_URL: its address past PgBouncer, if there is one",
            "the answer: database=postgresql, which this code has already",
        )
    return "Now change:" + "".join(f"\n  {line}" for line in lines)
