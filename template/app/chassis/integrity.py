# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks for damage to a database, and for rows that break the rules of its own tables.

Rows that break a rule are not damage. SQLite enforces foreign keys only on request, and the other
rules can be turned off. So a program that wrote before this service did may have left such rows.
They are reported, but they stop no copy, no restore and no start.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from app.chassis.sqlite.driver import sqlite3

OF_A_ROW: Final = re.compile(r"\S+ value in |CHECK constraint failed in ")
"""Beginning of a line about rows (sqlite.org/pragma.html#pragma_integrity_check)."""

EVERY: Final = 2**31 - 1
"""Maximum number of lines to ask for. Damage may come after a million lines about rows."""

SHOWN: Final = 3


class Reference(NamedTuple):
    """Foreign key with its table, its columns, and the table that they refer to."""

    table: str
    columns: str
    parent: str


class Orphans(NamedTuple):
    """Rows without a parent, or the reason why SQLite cannot look for them."""

    rows: int
    rowids: tuple[int, ...] = ()
    reason: str = ""


def find_faults(
    connection: sqlite3.Connection, *, quick: bool = False
) -> tuple[str | None, list[str]]:
    """Return the first damage, if any, and one line for each rule that rows break.

    Args:
        connection: The database.
        quick: True to skip the comparison of each index with its table.

    Raises:
        sqlite3.DatabaseError: The database is too damaged to be read.
    """
    damage, broken = find_damage(connection, quick=quick)
    return damage, broken if damage else [*broken, *describe(find_orphans(connection))]


def find_damage(connection: sqlite3.Connection, *, quick: bool) -> tuple[str | None, list[str]]:
    """Return the same as find_faults, but do not check foreign keys."""
    pragma = "quick_check" if quick else "integrity_check"
    broken: Counter[str] = Counter()
    # The first line is asked for alone, because reading on can fail where there is damage
    for limit in (1, EVERY):
        broken.clear()
        for (line,) in connection.execute(f"PRAGMA {pragma}({limit})"):
            if line == "ok":
                return None, []
            if not OF_A_ROW.match(line):
                return " ".join(line.split()), []
            broken[line] += 1
    return None, [f"{line} ({count} {noun(count)})" for line, count in broken.items()]


def find_orphans(connection: sqlite3.Connection) -> dict[Reference, Orphans]:
    """Return the rows of each foreign key that refer to no row."""
    found: dict[Reference, Orphans] = {}
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        quoted = table.replace('"', '""')
        columns: dict[int, list[str]] = {}
        for key, _, _, column, *_ in connection.execute(f'PRAGMA foreign_key_list("{quoted}")'):
            columns.setdefault(key, []).append(column)
        if not columns:
            continue
        try:
            for _, rowid, parent, key in connection.execute(
                f'PRAGMA foreign_key_check("{quoted}")'
            ):
                reference = Reference(table, ", ".join(columns[key]), parent)
                before = found.get(reference, Orphans(0))
                # A table WITHOUT ROWID has no rowid to report
                told = before.rowids + ((rowid,) if rowid is not None else ())
                found[reference] = Orphans(before.rows + 1, told[:SHOWN])
        except sqlite3.OperationalError as error:
            found[Reference(table, "", "")] = Orphans(0, reason=str(error))
    return found


def describe(found: Mapping[Reference, Orphans]) -> list[str]:
    """Return one line for each foreign key."""
    return [
        orphans.reason
        or f"table {reference.table} has {orphans.rows} {noun(orphans.rows)} whose "
        f"{reference.columns} is in no row of {reference.parent}{rowids(orphans)}"
        for reference, orphans in found.items()
    ]


def noun(count: int) -> str:
    return "row" if count == 1 else "rows"


def rowids(orphans: Orphans) -> str:
    if not orphans.rowids:
        return ""
    more = ", ..." if orphans.rows > len(orphans.rowids) else ""
    return f" (rowid {', '.join(map(str, orphans.rowids))}{more})"


def newly_orphaned(
    before: Mapping[Reference, Orphans],
    after: Mapping[Reference, Orphans],
    tables: tuple[set[str], set[str]],
) -> dict[Reference, Orphans]:
    """Return the foreign keys that a migration has broken, without those broken before it.

    Args:
        before: Result of `find_orphans` before the migration.
        after: Result of `find_orphans` after the migration.
        tables: Names of the tables before and after. Rows of a table with a new name do not
            count as new, if as many rows were in tables whose names are gone.
    """
    old, new = tables
    # A key that is gone may have another column now, or its tables may have other names
    gone: Counter[tuple[str, str]] = Counter()
    for reference in before.keys() - after.keys():
        gone[reference.table, reference.parent] += before[reference].rows
    moved = sum(rows for names, rows in gone.items() if (old - new).intersection(names))
    broken = {}
    for reference, orphans in after.items():
        names = (reference.table, reference.parent)
        unknown = max(0, orphans.rows - before.get(reference, Orphans(0)).rows)
        known = min(unknown, gone[names])
        gone[names] -= known
        unknown -= known
        if (new - old).intersection(names):
            known = min(unknown, moved)
            moved -= known
            unknown -= known
        if unknown or (orphans.reason and reference not in before):
            broken[reference] = orphans
    return broken
