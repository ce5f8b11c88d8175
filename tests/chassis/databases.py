"""A database with every table, migrated once for all tests that need one."""

import tempfile
from functools import cache
from pathlib import Path

from app.chassis import migrate


def make_database(path: Path) -> None:
    """Write the database that `migrate.upgrade` makes, without the time that it takes."""
    path.write_bytes(migrated())


@cache
def migrated() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory, "app.db")
        migrate.upgrade(database)
        return database.read_bytes()
