# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks of `python -m app check` on the database's server, and on code that came from SQLite."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from app.chassis import answers, revisions
from app.chassis.checks.finding import (
    Finding,
    failed,
    ok,
    shortened,
    skipped,
    warning,
)
from app.chassis.postgresql import schema
from app.chassis.postgresql.health import FULL, STATE
from app.chassis.postgresql.settings import RESERVE, SERVER_CONNECTIONS, PostgreSQLSettings
from app.chassis.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from sqlalchemy import MetaData

OLDEST: Final = 14
"""Oldest version that the chassis is tested with and that PostgreSQL's developers still fix."""

CLOCK_TOLERANCE: Final = 60.0
"""Seconds that this machine's clock may differ from the server's."""

STATEMENT_SECONDS: Final = 10
"""Seconds for one question to the server."""

PUBLIC: Final = (".rlwy.net", ".railway.app")
"""Ends of the names under which Railway has a database on the public network."""

GUIDE: Final = "docs/upgrading.md of the template, 0.6.0"

SEQUENCES: Final = """
    SELECT attrelid::regclass::text, quote_ident(attname),
    pg_get_serial_sequence(attrelid::regclass::text, attname)
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relkind IN ('r', 'p') AND NOT relispartition AND attnum > 0 AND NOT attisdropped
    AND relnamespace = current_schema()::regnamespace
    AND pg_get_serial_sequence(attrelid::regclass::text, attname) IS NOT NULL
"""

BROKEN: Final = """
    SELECT 'index ' || indexrelid::regclass::text FROM pg_index
    JOIN pg_class ON pg_class.oid = indexrelid
    WHERE NOT indisvalid AND relnamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'constraint ' || conname || ' of ' || conrelid::regclass::text FROM pg_constraint
    WHERE NOT convalidated AND connamespace = current_schema()::regnamespace
"""
"""Query for indexes whose creation failed, and constraints that were not checked on old rows."""


def check(settings: PostgreSQLSettings, metadata: "MetaData | None") -> Iterator[Finding]:
    """Check the settings, this project's code, and the server if it can be reached.

    Args:
        settings: Settings of the service.
        metadata: Tables of its models. Without them, only the settings are checked.
    """
    yield address(settings)
    yield connections(settings, SERVER_CONNECTIONS, "database.connections")
    if metadata is None:
        yield skipped("server", "only known where it is reached: run `check` there as well")
        return
    yield revisions.check_names(metadata)
    yield (order := revisions.check_order())
    yield tests()
    yield streams()
    try:
        with schema.connect(settings.direct_url) as connection:
            connection.autocommit = True
            connection.execute(f"SET statement_timeout = '{STATEMENT_SECONDS}s'")
            yield from server(connection, settings)
            tables = schema.table_names(connection)
            foreign = revisions.foreign_tables(connection, tables)
            current = revisions.current_revisions(connection, tables)
            yield revisions.check_standing(current, foreign, order)
            yield sequences(connection)
            yield rules(connection)
    except psycopg.Error as error:
        place = schema.place(settings.direct_url)
        advice = "start it (`python -m app database` on your machine), or correct DATABASE_URL"
        yield failed("server", f"{place} cannot be used: {schema.why(error)}", advice)


def address(settings: PostgreSQLSettings) -> Finding:
    """Check that the service reaches its database on the private network."""
    name, place = "database.address", schema.place(settings.url)
    host = str(settings.url.host)
    if settings.on_railway and host.endswith(PUBLIC):
        return warning(
            name,
            f"{place} goes over the public network, which is slower and is paid for",
            "set DATABASE_URL to the database's own variable, ${{postgres.DATABASE_URL}}",
        )
    if settings.is_pooled:
        return ok(name, f"{place} through a pooler, and {schema.place(settings.direct_url)}")
    return ok(name, place)


def connections(settings: PostgreSQLSettings, limit: int, name: str, also: str = "") -> Finding:
    """Check that the replicas of two deployments fit into the server's connections.

    Both are there while a new deployment takes over.
    """
    each = settings.workers * settings.of_process
    needed = 2 * answers.REPLICAS * each
    shown = (
        f"{also}{answers.REPLICAS} replicas with {each} each take {needed} during a deploy, of "
        f"{limit} with {RESERVE} for people"
    )
    if needed + RESERVE > limit:
        advice = "lower WORKERS or DATABASE_CONNECTIONS, have fewer replicas, or raise the limit"
        return failed(name, shown, advice)
    return ok(name, shown)


def server(
    connection: "psycopg.Connection[Any]", settings: PostgreSQLSettings
) -> Iterator[Finding]:
    """Check what the server is, and that it can do its work."""
    shown = f"PostgreSQL {connection.info.parameter_status('server_version')}"
    if connection.info.server_version < OLDEST * 10_000:
        yield failed("server.version", shown, f"move to version {OLDEST} or newer")
    else:
        yield ok("server.version", shown)
    ((recovering, read_only, used, limit),) = connection.execute(STATE).fetchall()
    name = "server.writable"
    if recovering:
        yield failed(name, "it is a standby, or in recovery", "set DATABASE_URL to the primary")
    elif read_only:
        advice = "ALTER DATABASE or ROLE ... RESET default_transaction_read_only"
        yield failed(name, "default_transaction_read_only is on", advice)
    else:
        yield ok(name, "it is no standby, and not read-only")
    name, shown = "server.connections", f"{used} of {limit} in use"
    if used > FULL * limit:
        yield warning(name, shown, "end what nobody needs, or raise the limit")
    else:
        # RESERVE includes the connections that the server itself keeps for superusers
        ((most,),) = connection.execute("SHOW max_connections").fetchall()
        yield connections(settings, int(most), name, f"{shown}; ")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        verdict = f"{encoding}, so not every text can be kept"
        yield failed("server.encoding", verdict, "move to a database with UTF8")
    yield clock(connection)


def clock(connection: "psycopg.Connection[Any]") -> Finding:
    """Check that this machine's clock is the server's, because rows get times from both."""
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None, "it is one row"
    apart = abs(time.time() - row[0])
    if apart > CLOCK_TOLERANCE:
        verdict = f"the server's clock and this machine's are {apart:.0f} s apart"
        return warning("clock", verdict, "set the machine's clock")
    return ok("clock", "as the server's")


def sequences(connection: "psycopg.Connection[Any]") -> Finding:
    """Check that each sequence is past the ids that its table has."""
    name, behind = "database.sequences", []
    for table, column, sequence in connection.execute(SEQUENCES).fetchall():
        query = (
            f"SELECT max({column}) >= "  # noqa: S608, the server has quoted the names
            f"(SELECT last_value + is_called::int FROM {sequence}) FROM {table}"
        )
        if connection.execute(query).fetchone() == (True,):
            behind.append((table, column, sequence))
    if not behind:
        return ok(name, "each is past the ids of its table")
    table, column, sequence = behind[0]
    return failed(
        name,
        f"{', '.join(found[2] for found in behind)} would give ids that are taken",
        f"SELECT setval('{sequence}', max({column})) FROM {table}",  # noqa: S608
    )


def rules(connection: "psycopg.Connection[Any]") -> Finding:
    """Check for indexes and constraints that are not in force for every row."""
    name, found = "database.rules", [row for (row,) in connection.execute(BROKEN)]
    if not found:
        return ok(name, "every index and every constraint is in force")
    return warning(
        name,
        f"{', '.join(found)}: not in force for every row",
        "REINDEX INDEX, or ALTER TABLE ... VALIDATE CONSTRAINT",
    )


def containing(files: Iterable[Path], *needed: str, without: str = r"\Z.") -> list[str]:
    """Return the files in which all of these expressions are found, and not the other one."""
    found = []
    for file in sorted(files):
        text = file.read_text(encoding="utf-8", errors="replace")
        if all(re.search(one, text) for one in needed) and not re.search(without, text):
            found.append(file.relative_to(PROJECT_ROOT).as_posix())
    return found


def tests() -> Finding:
    """Check that the service's own tests run on this engine."""
    name = "code.tests"
    here = PROJECT_ROOT / "tests"
    ours = (here / "chassis", here / "contract")
    own = (file for file in here.rglob("*.py") if not any(map(file.is_relative_to, ours)))
    if found := containing(own, r"sqlite(\+\w+)?:///"):
        return warning(
            name,
            f"{', '.join(found)} makes SQLite files, which this engine does not open",
            f"take the fixtures of a new project: {GUIDE}",
        )
    return ok(name, "no test makes an SQLite file")


def streams() -> Finding:
    """Check that no stream goes on after the newest id that it sees.

    With several writers a row with a smaller id can be committed later.
    """
    name = "code.streams"
    files = (PROJECT_ROOT / "app").rglob("*.py")
    own = (file for file in files if not file.is_relative_to(PROJECT_ROOT / "app" / "chassis"))
    if found := containing(own, r"\bLastEventId\b", r"\.id\s*>", without=r"\bsettled\b"):
        return warning(
            name,
            f"{', '.join(found)} may skip a row whose smaller id is committed later",
            f"read `.id <= database.settled(Model.id)` as well: {GUIDE}",
        )
    return ok(name, "no stream trusts that ids come in their order")


def writers(routes: Sequence[str]) -> Iterator[Finding]:
    """Yield the finding for routes whose Writer cannot be run again."""
    name = "code.writers"
    if not routes:
        yield ok(name, "each route's Writer is run again after a conflict")
        return
    yield warning(
        name,
        f"a conflict with another writer is a 503: {shortened(routes)}",
        f"make it a `def` on a Router of app.chassis: {GUIDE}",
    )
