# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Both kinds of database that `python -m app move` reads and writes.

Each is one connection in one transaction, which is committed only when all has been compared. It
has the lock that keeps the service away, and the revisions run in it as well. SQLite's part is
here, because a project on PostgreSQL has no other code for it.
"""

import fcntl
import logging
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol
from urllib.parse import quote

from sqlalchemy import URL, Connection, Table, create_engine, event
from sqlalchemy.pool import NullPool, StaticPool

from app.chassis.errors import StartupError
from app.chassis.postgresql import schema
from app.chassis.revisions import Schema

logger = logging.getLogger(__name__)

BATCH: Final = 1000
"""Rows that are sent to SQLite, or fetched from PostgreSQL, at once."""

MAGIC: Final = b"SQLite format 3\0"
"""First bytes of every file that is a database."""


class MoveError(StartupError):
    """Error that ends a move before anything is stored."""

    def __init__(self, text: str) -> None:
        super().__init__(f"Move: {text}")


class Store:
    """Database at one end of a move.

    It is also the ground of migrate.py, on which revisions run without a commit of their own.
    """

    options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self.connection = connection
        self.dialect = connection.dialect
        self.driver: Any = connection.connection.dbapi_connection

    def table_names(self, connection: Any) -> set[str]:
        raise NotImplementedError

    @contextmanager
    def connected(self) -> Iterator[Any]:
        yield self.driver

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Take nothing, because the lock has been held since the beginning."""
        yield

    @contextmanager
    def migrated(self, _: Schema) -> Iterator[tuple[Connection, set[str]]]:
        yield self.connection, set()

    def unseen(self, *_: object) -> Iterator[str]:
        yield from ()

    def quoted(self, *names: str) -> str:
        """Return names as a list of SQL's."""
        return ", ".join(map(self.dialect.identifier_preparer.quote_identifier, names))

    def rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query as the driver gives them, without having all in memory."""
        raise NotImplementedError

    def attempt(self) -> AbstractContextManager[Any]:
        """Return a context after whose errors the transaction can go on."""
        return nullcontext()

    def tables_with_rows(self, names: Iterable[str]) -> list[str]:
        """Return the tables that are not empty."""
        query = "SELECT 1 FROM {} LIMIT 1"
        return [name for name in names if list(self.rows(query.format(self.quoted(name))))]

    def defer_references(self) -> None:
        """Let rows refer to others that come later. `settle` checks all references."""

    def settle(self) -> None:
        """Check references that were deferred."""

    def clear(self, tables: Sequence[Table]) -> None:
        """Delete the rows that the revisions have made, because the source has them too."""
        raise NotImplementedError

    def write(self, table: Table, columns: Sequence[str], rows: Iterator[list[Any]]) -> None:
        raise NotImplementedError

    def last_id(self, table: Table, column: str) -> int:
        """Return the greatest number that the column has ever been given."""
        raise NotImplementedError

    def begin_after(self, table: Table, column: str, number: int) -> None:
        """Let new numbers of the column be greater than this one."""
        raise NotImplementedError

    def require_alone(self) -> None:
        """Refuse to go on if somebody else uses the source, which the lock may not prevent."""


class Address(Protocol):
    """Place of a database, which opens it to be read or to be written."""

    name: str

    def reading(self, timeout: float) -> AbstractContextManager[Store]: ...
    def writing(self, timeout: float) -> AbstractContextManager[Store]: ...


class SQLiteStore(Store):
    """SQLite file, with the service's lock beside it."""

    options = MappingProxyType({"render_as_batch": True})

    def table_names(self, connection: Any) -> set[str]:
        rows = connection.execute(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type <> 'shadow' AND "
            "type <> 'view'"
        )
        return {name for (name,) in rows if not name.startswith(("sqlite_", "_litestream_"))}

    def rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        # With `yield from`, Python would close the cursor, maybe after the connection
        for row in self.driver.execute(query):  # noqa: UP028
            yield row

    def settle(self) -> None:
        if broken := self.driver.execute("PRAGMA foreign_key_check").fetchone():
            raise MoveError(f"{broken[0]} has a row that refers to one which is not there.")

    def clear(self, tables: Sequence[Table]) -> None:
        for table in tables:
            self.driver.execute(f"DELETE FROM {self.quoted(table.name)}")  # noqa: S608

    def write(self, table: Table, columns: Sequence[str], rows: Iterator[list[Any]]) -> None:
        marks = ", ".join("?" * len(columns))
        into = f"{self.quoted(table.name)} ({self.quoted(*columns)})"
        self.driver.executemany(f"INSERT INTO {into} VALUES ({marks})", rows)  # noqa: S608

    def _keeps_ids(self, table: Table) -> bool:
        query = "SELECT sql FROM sqlite_master WHERE name = ? AND sql LIKE '%AUTOINCREMENT%'"
        return self.driver.execute(query, [table.name]).fetchone() is not None

    def last_id(self, table: Table, column: str) -> int:
        query = f"SELECT max({self.quoted(column)}) FROM {self.quoted(table.name)}"  # noqa: S608
        ((last,),) = self.rows(query)
        if self._keeps_ids(table):
            query = "SELECT seq FROM sqlite_sequence WHERE name = ?"
            last = max(last or 0, *(self.driver.execute(query, [table.name]).fetchone() or (0,)))
        return last or 0

    def begin_after(self, table: Table, column: str, number: int) -> None:
        if self._keeps_ids(table) and number > self.last_id(table, column):
            self.driver.execute("DELETE FROM sqlite_sequence WHERE name = ?", [table.name])
            self.driver.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", [table.name, number])


class SQLiteAddress:
    """Place of a SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"sqlite:///{path}"

    @contextmanager
    def reading(self, timeout: float) -> Iterator[Store]:
        if not self.path.is_file():
            raise MoveError(f"there is no file {self.path}.")
        with self.path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise MoveError(f"{self.path} is no SQLite database.")
        with self._opened("BEGIN", timeout) as store:
            store.driver.execute("PRAGMA query_only=ON")
            # A text that is not UTF-8 is refused by its row, not by the driver
            store.driver.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            yield store

    @contextmanager
    def writing(self, timeout: float) -> Iterator[Store]:
        with self._opened("BEGIN IMMEDIATE", timeout, mode="rwc") as store:
            yield store
            store.connection.commit()
            store.driver.execute("PRAGMA journal_mode=WAL")

    @contextmanager
    def _opened(self, begin: str, timeout: float, mode: str = "rw") -> Iterator[SQLiteStore]:
        with ExitStack() as stack:
            stack.callback(os.close, self._lock(timeout))
            driver = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode={mode}", uri=True, isolation_level=None
            )
            stack.callback(driver.close)
            engine = create_engine("sqlite://", creator=lambda: driver, poolclass=StaticPool)
            event.listen(engine, "begin", lambda opened: opened.exec_driver_sql(begin) and None)
            connection = stack.enter_context(engine.connect())
            connection.begin()
            yield SQLiteStore(self.name, connection)

    def _lock(self, timeout: float) -> int:
        """Lock the file as app/chassis/sqlite/volume.py does for a service."""
        path = self.path.with_name(f"{self.path.name}.lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise MoveError(f"cannot open {path}: {error.strerror}.") from None
        for due in schema.attempts(timeout):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                if due:
                    logger.warning("Waiting for the service that uses %s (%s)", self.path, holder)
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{socket.gethostname()}, process {os.getpid()}".encode(), 0)
            return descriptor
        os.close(descriptor)
        raise MoveError(f"a service uses {self.path} ({holder}). Stop it first.")


class PostgreSQLStore(Store):
    """PostgreSQL database, whose tables are locked."""

    def __init__(self, name: str, connection: Connection) -> None:
        super().__init__(name, connection)
        self._deferred: list[tuple[str, str]] = []

    def table_names(self, connection: Any) -> set[str]:
        return schema.table_names(connection)

    def rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        with self.driver.cursor(name="move") as cursor:
            cursor.itersize = BATCH
            yield from cursor.execute(query)

    def attempt(self) -> AbstractContextManager[Any]:
        return self.driver.transaction()  # type: ignore[no-any-return]

    def defer_references(self) -> None:
        found = self.driver.execute(
            "SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint "
            "WHERE contype = 'f' AND conparentid = 0 AND NOT condeferrable "
            "AND connamespace = current_schema()::regnamespace"
        )
        self._deferred = found.fetchall()
        self._alter_deferred("DEFERRABLE INITIALLY DEFERRED")
        self.driver.execute("SET CONSTRAINTS ALL DEFERRED")

    def settle(self) -> None:
        self.driver.execute("SET CONSTRAINTS ALL IMMEDIATE")
        self._alter_deferred("NOT DEFERRABLE")

    def _alter_deferred(self, how: str) -> None:
        for table, name in self._deferred:
            self.driver.execute(f"ALTER TABLE {table} ALTER CONSTRAINT {name} {how}")

    def clear(self, tables: Sequence[Table]) -> None:
        if tables:
            names = self.quoted(*(table.name for table in tables))
            self.driver.execute(f"TRUNCATE {names}")

    def write(self, table: Table, columns: Sequence[str], rows: Iterator[list[Any]]) -> None:
        into = f"{self.quoted(table.name)} ({self.quoted(*columns)})"
        with self.driver.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def _sequence(self, table: Table, column: str) -> str | None:
        query = "SELECT pg_get_serial_sequence(%s, %s)"
        (found,) = self.driver.execute(query, [self.quoted(table.name), column]).fetchone()
        return None if found is None else str(found)

    def last_id(self, table: Table, column: str) -> int:
        query = f"SELECT max({self.quoted(column)}) FROM {self.quoted(table.name)}"  # noqa: S608
        ((last,),) = self.rows(query)
        if sequence := self._sequence(table, column):
            query = f"SELECT last_value FROM {sequence} WHERE is_called"  # noqa: S608
            last = max(last or 0, *(self.driver.execute(query).fetchone() or (0,)))
        return last or 0

    def begin_after(self, table: Table, column: str, number: int) -> None:
        if (sequence := self._sequence(table, column)) and number > 0:
            self.driver.execute("SELECT setval(%s, %s)", [sequence, number])

    def require_alone(self) -> None:
        if others := self._others():
            raise MoveError(f"{others} has begun to use {self.name}. Stop it, and begin again.")

    def _others(self) -> str:
        """Return the programs that use the database as the service's role, or nothing."""
        found = self.driver.execute(
            "SELECT coalesce(nullif(application_name, ''), 'a program') || ' (' || count(*) || ')' "
            "FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid() "
            "GROUP BY application_name"
        )
        return ", ".join(name for (name,) in found.fetchall())

    def wait_until_alone(self, timeout: float) -> None:
        """Wait for the end of the service that uses the database, and lock its tables."""
        for due in schema.attempts(timeout):
            # A transaction always sees the same activity, so each look has one of its own
            if not (others := self._others()):
                break
            self.driver.rollback()
            if due:
                logger.warning("Waiting for the service that uses %s: %s", self.name, others)
        else:
            raise MoveError(f"{others} uses {self.name}. Stop the service first.")
        self.driver.rollback()

    def lock_tables(self, mode: str) -> None:
        """Lock the tables that there are, before anything is read."""
        self.driver.execute("SET LOCAL TIME ZONE 'UTC'")
        self.driver.execute(f"SET LOCAL lock_timeout = '{schema.TABLE_SECONDS}s'")
        with closing(self.driver.cursor()) as cursor:
            names = sorted(self.table_names(cursor))
        if names:
            self.driver.execute(f"LOCK TABLE {self.quoted(*names)} IN {mode} MODE")
        self.driver.execute("SET LOCAL lock_timeout = 0")


class PostgreSQLAddress:
    """Place of a PostgreSQL database."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.name = schema.place(url)

    @contextmanager
    def reading(self, timeout: float) -> Iterator[Store]:
        """Yield the database, to which nobody else writes meanwhile."""
        with self._opened(timeout) as store:
            store.wait_until_alone(timeout)
            store.lock_tables("SHARE")
            yield store

    @contextmanager
    def writing(self, timeout: float) -> Iterator[Store]:
        with self._opened(timeout) as store:
            # Otherwise it would wait for ever, without a word, for another move or revision
            store.driver.execute(f"SET LOCAL lock_timeout = '{schema.TABLE_SECONDS}s'")
            store.driver.execute("SELECT pg_advisory_xact_lock(%s)", [schema.LOCK])
            store.lock_tables("ACCESS EXCLUSIVE")
            yield store
            store.connection.commit()

    @contextmanager
    def _opened(self, timeout: float) -> Iterator[PostgreSQLStore]:
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: schema.wait_for(self.url, timeout),
            poolclass=NullPool,
        )
        with engine.connect() as connection:
            connection.begin()
            yield PostgreSQLStore(self.name, connection)
