# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Engine of the database, SQLite on one file.

The rest of the chassis takes these names of it, by way of assembly.py, and no others. The functions
import what they need themselves, because a start loads neither SQLAlchemy nor FastAPI.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.chassis.sqlite.commands import COMMANDS as COMMANDS

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.exc import IntegrityError, StatementError

    from app.chassis.checks.finding import Finding, HealthCheck
    from app.chassis.database import Database
    from app.chassis.sqlite.schema import Ground
    from app.chassis.sqlite.settings import SQLiteSettings

NAME: Final = "SQLite"

DAILY: Final = "`python3 -m app template update --to :current: -d backup=volume`"

BACKUP_ADVICE: Final = {
    "none": f"{DAILY}, or copy by hand",
    "railway": f"have the service make copies: {DAILY}",
}
"""Other ways to have copies, by backup strategy."""


def server_options(_: "SQLiteSettings") -> list[str]:
    """Return the options of gunicorn that name its configuration."""
    return ["--config=python:app.chassis.gunicorn"]


def open(settings: "SQLiteSettings") -> "Database":  # noqa: A001, the engine is used by its name
    """Open the database for the server or for code of the service's own."""
    from app.chassis.database import Database
    from app.chassis.sqlite.file import DatabaseFile
    from app.chassis.sqlite.readers import Readers
    from app.chassis.sqlite.writer import SingleWriter

    file = DatabaseFile(settings.database_path)
    return Database(Readers(file), SingleWriter(file, settings.sqlite_synchronous))


def prepare(settings: "SQLiteSettings", timeout: float | None = None) -> ExitStack:
    """Make the storage ready, and lock it for this process.

    Args:
        settings: Settings of the service.
        timeout: Seconds to wait for another service that uses the database. None locks nothing.

    Returns:
        The lock, which is given back when it is closed. Otherwise the server inherits it.

    Raises:
        StartupError: The storage cannot be used, or another service uses it.
    """
    from app.chassis.sqlite import backup, volume

    lock = ExitStack()
    volume.prepare(settings)
    if timeout is not None:
        lock.callback(os.close, volume.acquire_lock(settings.database_path, timeout))
        backup.tidy(settings.database_path)
    return lock


def migrating(database: "SQLiteSettings | Path") -> "AbstractContextManager[Ground]":
    """Return a context in which revisions can be run on the database, a new one if it is missing.

    The caller holds the lock, or works on a file of its own.

    Raises:
        StartupError: The file is no database.
    """
    from app.chassis.sqlite.schema import Ground

    return nullcontext(Ground(database if isinstance(database, Path) else database.database_path))


def new_database(directory: "Path") -> str:
    """Return the address of a new database for a test, whose file is made at its first use."""
    return f"sqlite:///{directory}/app.db"


@contextmanager
def database_gone(settings: "SQLiteSettings") -> Iterator[None]:
    """Move the database's file away for the time of a test."""
    path = settings.database_path
    moved = path.rename(path.with_name("moved.db"))
    try:
        yield
    finally:
        moved.rename(path)


def find_conflict(error: "IntegrityError") -> tuple[str, list[str]] | None:
    """Return what a request conflicts with and the columns, or None for an error of the service."""
    from app.chassis.sqlite import engines

    return engines.find_conflict(error)


def find_misfit(error: "StatementError") -> str | None:
    """Return why the database cannot keep a value of a request, or None for another error."""
    from sqlalchemy.exc import DataError

    return "A value is too large for the database" if isinstance(error, DataError) else None


def checks(settings: "SQLiteSettings", database: "Database | None") -> "dict[str, HealthCheck]":
    """Return the checks of /health by name, without a database only those of its file."""
    from app.chassis.sqlite import health

    return health.checks(settings, database)


def probes(settings: "SQLiteSettings", metadata: "MetaData | None") -> "Iterator[Finding]":
    """Return the findings of `python -m app check`, without metadata those about settings alone."""
    from app.chassis.checks.finding import readable
    from app.chassis.sqlite import check

    return readable("volume", check.check(settings, metadata))


def check_writers(_: Sequence[str]) -> "Iterator[Finding]":
    """Yield no finding about routes whose Writer FastAPI opens, which only wait for their turn."""
    yield from ()


def figures(settings: "SQLiteSettings") -> dict[str, Any]:
    """Return the figures of `python -m app status`."""
    from app.chassis.sqlite import health

    return health.figures(settings)


def in_words(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return a label and a text for each figure."""
    from app.chassis.sqlite import health

    return health.in_words(figures)
