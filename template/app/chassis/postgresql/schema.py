# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Schema of the database, the wait for its server, and the lock of those who change it.

Several replicas start at once, and a deploy's own command may still be at work. So whoever runs
revisions holds an advisory lock of the server. Whoever finds nothing to do takes none.
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg

from app.chassis import revisions
from app.chassis.errors import StartupError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Table

    from app.chassis.postgresql.settings import PostgreSQLSettings

logger = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 5
"""Seconds for one attempt to connect."""

PAUSE: Final = 0.5
"""Seconds between two attempts to connect, or to take the lock."""

TELL_SECONDS: Final = 5.0
"""Seconds between two messages about a wait."""

TABLE_SECONDS: Final = 10
"""Seconds that a revision waits for a table that others use. All others wait behind it."""

LOCK: Final = 0x7472_6163_6B62_6564
"""Number of the advisory lock, which is one for each database of a server."""

TABLES: Final = """
    SELECT relname FROM pg_class AS found
    WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
    AND NOT relispartition AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = found.oid
        AND deptype = 'e'
    )
"""
"""Query for the tables that revisions or people have made. Others belong to an extension."""

ATTENTIVE: Final = """
    SELECT set_config(name, '1s', false) FROM pg_settings
    WHERE name = 'client_connection_check_interval'
"""
"""Command for the server to end a statement, and give its locks back, when its client is killed."""

HOLDER: Final = """
    SELECT pid, host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pg_locks.database = (
        SELECT oid FROM pg_database WHERE datname = current_database()
    ) AND (classid::bigint << 32) + objid::bigint = %s
"""
"""Query for the session that has the lock, and its address."""

WORD: Final = re.compile(r"\w+")


class Ground:
    """Database that revisions are run on, past a pooler if there is one."""

    # So that the revisions also run on SQLite, if the service goes back
    options: Final = {"render_as_batch": True}

    _locked: "Connection"

    def __init__(self, settings: "PostgreSQLSettings") -> None:
        self.url = settings.direct_url
        self.timeout = settings.lock_timeout
        self.name = place(self.url)

    @contextmanager
    def connected(self) -> "Iterator[psycopg.Connection[Any]]":
        """Yield a connection that sees the database at one moment.

        Raises:
            StartupError: It cannot be used, or does not answer in time.
        """
        try:
            with wait_for(self.url, self.timeout) as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                yield connection
        except psycopg.Error as error:
            raise unusable(self.url, error) from None

    def table_names(self, connection: "psycopg.Connection[Any]") -> set[str]:
        return table_names(connection)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of those who change the schema.

        The revisions run on the connection that has the lock. So neither outlives the other,
        whatever breaks.

        Raises:
            StartupError: Another process has kept it for too long, or the server has gone.
        """
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        with closing(wait_for(self.url, self.timeout)) as driver:
            driver.autocommit = True
            try:
                driver.execute(ATTENTIVE)
                take_lock(driver, self.name, self.timeout)
            except psycopg.Error as error:
                raise unusable(self.url, error) from None
            driver.autocommit = False
            engine = create_engine(self.url, poolclass=NullPool, creator=lambda: driver)
            with engine.connect() as self._locked:
                yield

    @contextmanager
    def migrated(self, line: revisions.Schema) -> "Iterator[tuple[Connection, set[str]]]":
        """Yield the lock's connection in a transaction, and the unmanaged tables.

        Raises:
            alembic.util.CommandError: A table was in use for too long.
        """
        from alembic.util import CommandError
        from sqlalchemy.exc import OperationalError

        try:
            with self._locked.begin():
                driver: Any = self._locked.connection.dbapi_connection
                driver.execute(f"SET LOCAL lock_timeout = '{TABLE_SECONDS}s'")
                yield self._locked, unmanaged(driver, line)
        except OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise
            raise CommandError(
                f"a table was in use for {TABLE_SECONDS} s by a long transaction, and everybody "
                "else would have had to wait as well; `python -m app status` shows its age"
            ) from None

    def unseen(self, connection: "Connection", tables: "Iterable[Table]") -> Iterator[str]:
        """Yield a line for each part of the models that the database lacks and Alembic overlooks.

        It overlooks check constraints, and the values of an enumeration.
        """
        tables = list(tables)
        for table, names in revisions.missing_checks(connection, tables):
            yield (
                f"Table {table} has no {names} in the database, and Alembic writes no check "
                "constraint: add op.create_check_constraint to the revision"
            )
        yield from missing_values(connection, tables)


def place(url: "URL") -> str:
    """Return the name that messages have for a database."""
    return f"{url.database} at {url.host}:{url.port or 5432}"


def connect(url: "URL", seconds: int = CONNECT_SECONDS) -> "psycopg.Connection[Any]":
    """Open a connection of its own, outside of any pool."""
    text = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(text, connect_timeout=seconds, prepare_threshold=None)


def why(error: psycopg.Error) -> str:
    """Return the end of the driver's message, which comes after names of hosts and the like."""
    first, *_ = (str(error) or type(error).__name__).splitlines()
    return first.rpartition("FATAL: ")[2].rpartition("failed: ")[2].strip()


def unusable(url: "URL", error: psycopg.Error) -> StartupError:
    return StartupError(
        f"Database: {place(url)} cannot be used: {why(error)}. Start it (`python -m app "
        "database` on your machine), or correct DATABASE_URL."
    )


def attempts(timeout: float) -> Iterator[bool]:
    """Yield, at once and then twice a second, whether it is time to report the wait."""
    start = told = time.monotonic()
    now, due = start, timeout >= PAUSE
    while True:
        yield due
        if now - start + PAUSE > timeout:
            return
        time.sleep(PAUSE)
        now = time.monotonic()
        if due := now - told >= TELL_SECONDS:
            told = now


def wait_for(url: "URL", timeout: float) -> "psycopg.Connection[Any]":
    """Connect to the database, and wait for its server if that does not answer yet.

    Raises:
        StartupError: It cannot be used in that time.
    """
    for due in attempts(timeout):
        try:
            return connect(url)
        except psycopg.OperationalError as error:
            last = error
        if due:
            logger.warning("Waiting for the database %s: %s", place(url), why(last))
    raise unusable(url, last)


def reach(settings: "PostgreSQLSettings") -> None:
    """Wait for the server, and refuse a pooler that no setting tells of.

    Behind one the lock is not exclusive and prepared statements fail. A pooler is recognised
    by the number of the session, which it makes up for its client.

    Raises:
        StartupError: The server cannot be used, or not in this way.
    """
    with closing(wait_for(settings.url, settings.lock_timeout)) as connection:
        try:
            number = connection.execute("SELECT pg_backend_pid()").fetchone()
        except psycopg.Error as error:
            raise unusable(settings.url, error) from None
        is_direct = number == (connection.info.backend_pid,)
    if not is_direct and not settings.is_pooled:
        raise StartupError(
            f"Database: {place(settings.url)} is a pooler, such as PgBouncer. Set "
            "DATABASE_UNPOOLED_URL to the address of the database itself."
        )


def take_lock(connection: "psycopg.Connection[Any]", name: str, timeout: float) -> None:
    """Take the lock of those who change the schema. It ends with the connection.

    Raises:
        StartupError: Another process has kept it for too long.
    """
    for due in attempts(timeout):
        if connection.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone() == (True,):
            return
        row = connection.execute(HOLDER, [LOCK]).fetchone()
        holder = "" if row is None else f" (session {row[0]} of {row[1] or 'this machine'})"
        if due:
            logger.warning(
                "Waiting for another start or `migrate` that changes the schema of %s%s",
                name,
                holder,
            )
    raise StartupError(
        f"Database: another process has been changing the schema of {name} for more than "
        f"{timeout:g} s{holder}. Start again when it has ended, or set LOCK_TIMEOUT to more."
    )


def table_names(connection: Any) -> set[str]:
    """Return the tables that revisions or people have made."""
    return {name for (name,) in connection.execute(TABLES)}


def unmanaged(connection: "psycopg.Connection[Any]", line: revisions.Schema) -> set[str]:
    """Return the tables that no revision has made, among them those of extensions.

    Alembic would drop them, because no model has them.
    """
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'f') "
        "AND relnamespace = current_schema()::regnamespace"
    )
    managed = table_names(connection) & revisions.words_of(line)
    return {name for (name,) in rows} - managed


def missing_values(connection: "Connection", tables: "Iterable[Table]") -> Iterator[str]:
    """Yield a line for each enumeration of the models that has more values than its type has."""
    from sqlalchemy import Enum

    rows = connection.exec_driver_sql(
        "SELECT typname, enumlabel FROM pg_type JOIN pg_enum ON enumtypid = pg_type.oid "
        "WHERE typnamespace = current_schema()::regnamespace"
    )
    found: dict[str, set[str]] = {}
    for name, value in rows:
        found.setdefault(name, set()).add(value)
    kinds = {
        column.type.name: column.type.enums
        for table in tables
        for column in table.columns
        if isinstance(column.type, Enum) and column.type.native_enum
    }
    for kind, values in kinds.items():
        for value in values:
            if kind in found and value not in found[kind]:
                yield (
                    f"Type {kind} has no value {value!r} in the database, and Alembic compares no "
                    f'values: the revision needs op.execute("ALTER TYPE {kind} ADD VALUE ...")'
                )
