"""A file with every table, migrated once for all tests that need one."""

import tempfile
from functools import cache
from pathlib import Path

from app.chassis import migrate
from app.chassis.database import Database
from app.chassis.sqlite.file import DatabaseFile
from app.chassis.sqlite.readers import Readers
from app.chassis.sqlite.writer import SingleWriter
from app.settings import Settings


def open_at(path: Path, synchronous: str = "FULL") -> Database:
    """Open the database of a file as the engine does."""
    file = DatabaseFile(path)
    return Database(Readers(file), SingleWriter(file, synchronous))


def path_of(database: Database) -> Path:
    assert isinstance(database.writer, SingleWriter)
    return database.writer.file.path


def make_database(settings: Settings) -> None:
    """Write the database that `migrate.upgrade` makes, without the time that it takes."""
    settings.database_path.write_bytes(migrated())


@cache
def migrated() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory, "app.db")
        migrate.upgrade(database)
        return database.read_bytes()
