"""A database of the tests' server with every table, copied from one that was migrated."""

from functools import cache

from app.chassis import migrate
from app.chassis.postgresql.local import of_tests
from app.settings import Settings


def make_database(settings: Settings) -> None:
    """Make the database anew as `migrate.upgrade` makes it, without the time that it takes."""
    name = settings.url.database
    of_tests().execute(f"DROP DATABASE {name}")
    of_tests().execute(f"CREATE DATABASE {name} OWNER app TEMPLATE {migrated()} STRATEGY file_copy")


@cache
def migrated() -> str:
    settings = Settings.load(database_url=of_tests().new_database())
    migrate.upgrade(settings)
    assert settings.url.database
    return settings.url.database
