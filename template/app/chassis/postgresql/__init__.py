# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Engine of the database, a PostgreSQL server that several containers share.

The rest of the chassis takes these names of it, by way of assembly.py, and no others. The functions
import what they need themselves, because a start loads neither SQLAlchemy nor FastAPI.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.chassis.postgresql.commands import COMMANDS as COMMANDS

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.exc import IntegrityError, StatementError

    from app.chassis.checks.finding import Finding, HealthCheck
    from app.chassis.database import Database
    from app.chassis.postgresql.schema import Ground
    from app.chassis.postgresql.settings import PostgreSQLSettings

NAME: Final = "PostgreSQL"

BACKUP_ADVICE: Final = {
    "none": "`python3 -m app template update --to :current: -d backup=railway`, or copy by hand "
    "with pg_dump",
    "railway": "copy by hand with pg_dump",
}
"""Other ways to have copies, by backup strategy."""


def server_options(settings: "PostgreSQLSettings") -> list[str]:
    """Return the options of gunicorn that name its configuration, and the delay of a stop."""
    return [
        "--config=python:app.chassis.postgresql.gunicorn",
        f"--env=STOP_DELAY={settings.stop_delay:g}",
    ]


def open(settings: "PostgreSQLSettings") -> "Database":  # noqa: A001, the engine is used by its name
    """Open the database for the server or for code of the service's own."""
    from app.chassis.database import Database
    from app.chassis.postgresql.engine import Readers, Writers

    return Database(Readers(settings), Writers(settings))


def prepare(settings: "PostgreSQLSettings", timeout: float | None = None) -> ExitStack:
    """Wait for the server. Others share it, so there is nothing to lock.

    A private network may need a minute after the start of its container, also for a deploy's own
    `migrate`. So the wait is LOCK_TIMEOUT for every command.

    Args:
        settings: Settings of the service.
        timeout: Seconds to wait for a lock. None does not look for the server.

    Raises:
        StartupError: The server cannot be used.
    """
    if timeout is not None:
        from app.chassis.postgresql import schema

        schema.reach(settings)
    return ExitStack()


def migrating(database: "PostgreSQLSettings | Path") -> "AbstractContextManager[Ground]":
    """Return a context in which revisions can be run on the database."""
    from app.chassis.postgresql.schema import Ground

    assert not isinstance(database, Path), "only the other engine has a file"
    return nullcontext(Ground(database))


def new_database(_: "Path") -> str:
    """Return the address of a new, empty database for a test."""
    from app.chassis.postgresql import local

    return local.of_tests().new_database()


def database_gone(settings: "PostgreSQLSettings") -> AbstractContextManager[None]:
    """Return a context in which the server refuses the database of a test."""
    from app.chassis.postgresql import local

    return local.of_tests().refusing(settings.url.database or "")


def find_conflict(error: "IntegrityError") -> tuple[str, list[str]] | None:
    """Return what a request conflicts with and the columns, or None for an error of the service."""
    from app.chassis.postgresql import errors

    return errors.find_conflict(error)


def find_misfit(error: "StatementError") -> str | None:
    """Return why the database cannot keep a value of a request, or None for another error."""
    from app.chassis.postgresql import errors

    return errors.find_misfit(error)


def checks(settings: "PostgreSQLSettings", database: "Database | None") -> "dict[str, HealthCheck]":
    """Return the checks of /health by name, without a database only that of its server."""
    from app.chassis.postgresql import health

    return health.checks(settings, database)


def probes(settings: "PostgreSQLSettings", metadata: "MetaData | None") -> "Iterator[Finding]":
    """Return the findings of `python -m app check`, without metadata those about settings alone."""
    from app.chassis.postgresql import check

    return check.check(settings, metadata)


def check_writers(routes: Sequence[str]) -> "Iterator[Finding]":
    """Return the finding about routes whose Writer FastAPI opens, which cannot be run again."""
    from app.chassis.postgresql import check

    return check.writers(routes)


def figures(settings: "PostgreSQLSettings") -> dict[str, Any]:
    """Return the figures of `python -m app status`."""
    from app.chassis.postgresql import health

    return health.figures(settings)


def in_words(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return a label and a text for each figure."""
    from app.chassis.postgresql import health

    return health.in_words(figures)
