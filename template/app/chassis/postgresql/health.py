# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Health of the database for /health, and the figures behind it for `python -m app status`.

A pooled `SELECT 1` says nothing about new connections, and waits for as long as its server hangs.
So the check connects afresh, asks for what the service needs, and gives up after two seconds.
"""

import select
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.pq import ExecStatus

from app.chassis import revisions
from app.chassis.checks.finding import Degraded, HealthCheck, Unhealthy
from app.chassis.health import ago, in_bytes
from app.chassis.postgresql import schema
from app.chassis.postgresql.settings import PostgreSQLSettings

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult
    from sqlalchemy import URL

    from app.chassis.database import Database

SECONDS: Final = 2
"""Seconds to connect, and as many for the answers. psycopg takes no fewer to connect."""

FULL: Final = 0.9
"""Part of the server's connections in use above which /health says degraded."""

STATE: Final = """
    SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
    current_setting('max_connections')::int
    - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true), '0')::int
"""
"""Query for recovery, read-only, connections in use, and how many the service's user can have."""

FIGURES: Final = """
    SELECT current_setting('server_version'), pg_database_size(current_database()),
    (SELECT extract(epoch FROM clock_timestamp() - min(xact_start)) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid())
"""
"""Query for version, size in bytes, and age of the oldest transaction in seconds."""

SLOW: Final = "the database does not answer in time"


class Asking:
    """Connection whose answers come in time, or are an error.

    psycopg itself waits for as long as the server keeps the connection. Values are texts.
    """

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self.connection = connection
        self.deadline = time.monotonic() + SECONDS

    def execute(self, query: str) -> list[tuple[str | None, ...]]:
        """Return the rows of one statement.

        Raises:
            TimeoutError: The server did not answer in time.
            psycopg.Error: It answered with an error, or closed the connection.
        """
        server, encoding = self.connection.pgconn, self.connection.info.encoding
        server.send_query(query.encode(encoding))
        result = self._next()
        while self._next() is not None:
            pass
        if result is None or result.status != ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result) if result else psycopg.OperationalError
        return [
            tuple(
                None if (value := result.get_value(row, column)) is None else value.decode(encoding)
                for column in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]

    def _next(self) -> "PGresult | None":
        """Return the next result, or None after the last one. Each may come alone."""
        server = self.connection.pgconn
        poll = select.poll()
        poll.register(server.socket, select.POLLIN)
        while server.flush() or server.is_busy():
            left = self.deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError
            server.consume_input()
        return server.get_result()


@contextmanager
def asking(url: "URL") -> Iterator[Asking]:
    """Yield a connection of its own, outside of the pool.

    Raises:
        Unhealthy: There is none, or an answer is missing.
    """
    try:
        # Its own context would roll back first, and wait for a server that hangs
        with closing(schema.connect(url, SECONDS)) as connection:
            yield Asking(connection)
    except TimeoutError as error:
        raise Unhealthy(SLOW) from error
    except psycopg.errors.ConnectionTimeout as error:
        raise Unhealthy(SLOW) from error
    except psycopg.Error as error:
        raise Unhealthy("the database does not answer") from error


def checks(settings: PostgreSQLSettings, database: "Database | None") -> dict[str, HealthCheck]:
    """Return the checks by name, without a database only that of its server."""
    known, heads = revisions.known_revisions(), revisions.head_revisions()
    of_process: dict[str, HealthCheck] = {}
    if database is not None:
        from app.chassis.postgresql.engine import Readers  # `status` needs no SQLAlchemy

        assert isinstance(database.readers, Readers)
        of_process["readers"] = database.readers.look
    return {"database": partial(check_server, settings.url, known, heads), **of_process}


def check_server(url: "URL", known: Mapping[str, object], heads: frozenset[str]) -> None:
    """Check that the server takes connections, can write, and has this code's schema."""
    with asking(url) as server:
        ((recovering, read_only, used, limit),) = server.execute(STATE)
        current = revisions.current_revisions(server, schema.table_names(server))
    if recovering == "t":
        raise Unhealthy("the database is a standby, or recovers")
    if read_only == "t":
        raise Unhealthy("the database is read-only")
    if not revisions.is_migrated(current, known, heads):
        raise Unhealthy("the database is not at this release's schema")
    if int(used or 0) > FULL * int(limit or 0):
        raise Degraded("the database has few connections left")


def figures(settings: PostgreSQLSettings) -> dict[str, Any]:
    """Return sizes in bytes and ages in seconds. A figure that nobody can know is None."""
    found: dict[str, Any] = dict.fromkeys(
        (
            "server_version",
            "recovery",
            "connections",
            "connections_limit",
            "database_bytes",
            "oldest_transaction_age",
            "revision",
        )
    )
    found["database"] = schema.place(settings.url)
    try:
        with asking(settings.direct_url) as server:
            ((recovering, _, used, limit),) = server.execute(STATE)
            ((version, size, oldest),) = server.execute(FIGURES)
            current = revisions.current_revisions(server, schema.table_names(server))
    except Unhealthy:
        return found
    return {
        **found,
        "server_version": version,
        "recovery": recovering == "t",
        "connections": int(used or 0),
        "connections_limit": int(limit or 0),
        "database_bytes": int(size or 0),
        "oldest_transaction_age": oldest and float(oldest),
        "revision": ", ".join(sorted(current)) or None,
    }


def in_words(found: Mapping[str, Any]) -> dict[str, str]:
    """Return a label and a text for each figure."""
    words = {"database": found["database"]}
    if found["server_version"] is None:
        return words
    age = found["oldest_transaction_age"]
    return {
        "database": f"{found['database']}, {in_bytes(found['database_bytes'])}",
        "server": f"PostgreSQL {found['server_version']}"
        f"{', a standby, or in recovery' if found['recovery'] else ''}",
        "connections": f"{found['connections']} of {found['connections_limit']} in use",
        "transactions": "none open" if age is None else f"the oldest began {ago(age)}",
        "revision": found["revision"] or "none",
    }
