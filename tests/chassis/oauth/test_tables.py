"""The table of users: as the revisions make it, and apart from the service's own tables."""

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import exc, inspect, text
from sqlalchemy.orm import Session

from app.chassis import assembly, migrate, revisions
from app.chassis.errors import StartupError
from app.chassis.oauth.models import User
from app.chassis.testing import outside
from app.settings import Settings

(SCHEMA,) = (schema for schema in revisions.FEATURES if schema.name == "oauth")


def config(settings: Settings) -> Config:
    found = Config(attributes={"database": settings, "schema": SCHEMA})
    found.set_main_option("script_location", str(SCHEMA.versions.parent))
    return found


def test_the_model_is_what_the_revisions_make(settings: Settings) -> None:
    command.check(config(settings))


def test_the_revisions_can_be_undone(settings: Settings) -> None:
    command.downgrade(config(settings), "base")
    found = outside(settings, lambda session: inspect(session.connection()).get_table_names())
    assert "users" not in found
    assert "alembic_version" in found

    migrate.upgrade(settings)

    command.check(config(settings))


def test_an_account_has_one_row(settings: Settings) -> None:
    database = assembly.engine.open(settings)

    def add(provider: str, subject: str) -> None:
        with database.write() as session:
            session.add(User(provider=provider, subject=subject))

    try:
        add("one", "ann")
        add("another", "ann")
        with pytest.raises(exc.IntegrityError):
            add("one", "ann")
    finally:
        database.dispose()


def test_a_table_of_ones_own_by_that_name_is_left_alone(settings: Settings) -> None:
    def change(session: Session) -> None:
        for name in ("users", SCHEMA.version_table):
            session.execute(text(f"DROP TABLE {name}"))
        session.execute(text("CREATE TABLE users (mine INTEGER)"))

    outside(settings, change)

    with pytest.raises(StartupError, match="needs a table 'users'"):
        migrate.upgrade(settings)
