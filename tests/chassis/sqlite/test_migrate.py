"""Migrations: once, whole or not at all, and in step with the models."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import CommandLine, Config
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from app.chassis import migrate
from app.chassis import revisions as lines
from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT
from app.chassis.sqlite.driver import MAGIC, open_database
from app.chassis.sqlite.schema import create_database, current_revisions, require_database
from app.chassis.testing import required_variables
from app.models import Base
from app.settings import Settings

BROKEN = """
import sqlalchemy as sa
from alembic import op

revision = "broken"
down_revision = "{head}"


def upgrade() -> None:
    op.create_table("half", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("INSERT INTO half VALUES (1)")
    raise RuntimeError("in the middle")
"""

UPGRADE = """
import sys
from collections.abc import Callable
from pathlib import Path
from app.chassis.migrate import upgrade
upgrade(Path(sys.argv[1]))
"""


def tables(path: Path) -> set[str]:
    connection = open_database(path)
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    return {name for (name,) in rows}


def revisions(path: Path) -> frozenset[str]:
    connection = open_database(path)
    found = current_revisions(connection)
    connection.close()
    return found


def test_a_new_database_gets_every_table(settings: Settings) -> None:
    migrate.upgrade(settings.database_path)

    assert revisions(settings.database_path) == lines.head_revisions()
    assert len(lines.head_revisions()) == len(lines.schemas())


def test_the_models_are_what_the_migrations_make(settings: Settings) -> None:
    migrate.upgrade(settings.database_path)

    # raises when a revision is missing for a change of app/models.py
    attributes = {"database": settings.database_path}
    command.check(Config(toml_file=PROJECT_ROOT / "pyproject.toml", attributes=attributes))


def test_alembic_is_not_loaded_without_need(settings: Settings) -> None:
    migrate.upgrade(settings.database_path)
    script = f"{UPGRADE}\nassert 'alembic' not in sys.modules"

    subprocess.run(
        [sys.executable, "-c", script, str(settings.database_path)], cwd=PROJECT_ROOT, check=True
    )


@pytest.mark.long
def test_several_at_once_do_not_race(settings: Settings) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, str(settings.database_path)], cwd=PROJECT_ROOT
        )
        for _ in range(3)
    ]

    assert [process.wait() for process in started] == [0, 0, 0]
    assert revisions(settings.database_path) == lines.head_revisions()


def test_a_failed_migration_leaves_nothing_and_can_be_repeated(
    settings: Settings, add_revision: Callable[[str], str]
) -> None:
    migrate.upgrade(settings.database_path)
    head = add_revision(BROKEN)

    for _ in range(2):
        with pytest.raises(StartupError, match="was rolled back"):
            migrate.upgrade(settings.database_path)
        assert "half" not in tables(settings.database_path)
        assert head in revisions(settings.database_path)


def make_tables(settings: Settings) -> None:
    """What a service without migrations has made of a file."""
    connection = open_database(settings.database_path, create=True)
    for table in ("before_a", "before_b"):
        connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, text TEXT)")
    connection.execute("INSERT INTO before_b (text) VALUES ('from before')")
    # `alembic revision` and `alembic current` leave this
    connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.close()


def test_tables_without_a_revision_are_not_built_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "accepts_tables", lambda _: False)
    make_tables(settings)
    before = settings.database_path.read_bytes()

    with pytest.raises(StartupError, match=r"tables \(before_a, before_b\) and no") as caught:
        migrate.upgrade(settings.database_path)

    assert "alembic -x existing revision" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert settings.database_path.read_bytes() == before


ACCEPTS = """
import sqlalchemy as sa
from alembic import op

revision = "accepts"
down_revision = "{head}"


def upgrade() -> None:
    for table in ("before_b", "new_c"):
        op.create_table(table, sa.Column("id", sa.Integer, primary_key=True), if_not_exists=True)
"""


def test_a_revision_can_accept_what_is_there(
    settings: Settings, add_revision: Callable[[str], str]
) -> None:
    add_revision(ACCEPTS)
    make_tables(settings)

    migrate.upgrade(settings.database_path)

    assert {"before_a", "before_b", "new_c"} <= tables(settings.database_path)
    connection = open_database(settings.database_path)
    assert connection.execute("SELECT text FROM before_b").fetchall() == [("from before",)]
    connection.close()


def test_a_first_revision_of_what_there_was(
    settings: Settings, add_revision: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`alembic -x existing` writes what the models have, as if the database were empty."""
    add_revision("")
    for file in lines.VERSIONS.glob("*.py"):
        file.unlink()
    features = lines.names_of_features()
    own = [table for table in Base.metadata.sorted_tables if table.name not in features]
    connection = open_database(settings.database_path, create=True)
    for table in own:
        connection.execute(str(CreateTable(table).compile(dialect=sqlite.dialect())))
    connection.close()
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    project = lines.VERSIONS.parents[1]
    monkeypatch.chdir(project)

    CommandLine().main(["-x", "existing", "revision", "--autogenerate", "-m", "what there was"])
    (file,) = lines.VERSIONS.glob("*.py")
    assert file.read_text(encoding="utf-8").count("if_not_exists=True") >= len(own)

    migrate.upgrade(settings.database_path)
    assert revisions(settings.database_path) == lines.head_revisions()
    fresh = settings.database_path.with_name("fresh.db")
    migrate.upgrade(fresh)
    assert {table.name for table in own} <= tables(fresh)


def test_a_newer_schema_is_served_as_it_is(settings: Settings) -> None:
    migrate.upgrade(settings.database_path)
    connection = open_database(settings.database_path)
    connection.execute("UPDATE alembic_version SET version_num = 'newer'")
    connection.close()

    migrate.upgrade(settings.database_path)

    assert "newer" in revisions(settings.database_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"not a database" * 1000, "the file is not a database")],
    ids=["empty", "text"],
)
def test_a_file_that_is_no_database_is_left_alone(
    settings: Settings, content: bytes, message: str
) -> None:
    settings.database_path.write_bytes(content)
    log = settings.database_path.with_name("app.db-wal")
    log.write_bytes(b"what SQLite would delete")

    with pytest.raises(StartupError, match=message) as caught:
        migrate.upgrade(settings.database_path)

    assert "\n" not in str(caught.value)
    assert settings.database_path.read_bytes() == content
    assert log.read_bytes() == b"what SQLite would delete"


def test_a_truncated_database_is_refused(settings: Settings) -> None:
    migrate.upgrade(settings.database_path)
    os.truncate(settings.database_path, settings.database_path.stat().st_size // 2)

    with pytest.raises(StartupError, match="cannot be used: database disk image is malformed"):
        migrate.upgrade(settings.database_path)


def test_a_new_database_has_its_name_when_it_is_one(settings: Settings) -> None:
    """A start that is killed before the first migration leaves what the next one can use."""
    path = settings.database_path
    require_database(path)

    assert path.read_bytes().startswith(MAGIC)
    assert list(path.parent.iterdir()) == [path]
    migrate.upgrade(path)
    assert revisions(path) == lines.head_revisions()


def test_creating_replaces_nothing(settings: Settings) -> None:
    migrate.upgrade(settings.database_path)

    create_database(settings.database_path)

    assert revisions(settings.database_path) == lines.head_revisions()


@pytest.mark.long
@pytest.mark.parametrize("command", ["upgrade head", "current", "check"])
def test_alembic_makes_the_directory_of_a_fresh_clone(tmp_path: Path, command: str) -> None:
    database = tmp_path / "data" / "app.db"

    done = run_alembic(command, DATABASE_URL=f"sqlite:///{database}")

    assert "Traceback" not in done.stderr
    assert database.exists()


@pytest.mark.long
def test_alembic_shows_a_refusal_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "app.db").touch()
    empty = run_alembic("upgrade head", DATABASE_URL=f"sqlite:///{tmp_path}/app.db")
    bad = run_alembic("current", DATABASE_URL=f"sqlite:///{tmp_path}/b.db", WORKERS="many")

    for done, reason in ((empty, "the file is empty"), (bad, "WORKERS: ")):
        assert done.returncode != 0
        assert reason in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def run_alembic(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alembic", *command.split()],
        cwd=PROJECT_ROOT,
        env={"PATH": os.environ["PATH"], **required_variables(Settings), **variables},
        capture_output=True,
        encoding="utf-8",
    )
