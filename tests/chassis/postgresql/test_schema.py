"""How the schema comes to the server: the wait, the lock, and what a migration leaves behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from sqlalchemy import CheckConstraint, Column, Enum, Integer, MetaData, Table

from app.chassis import assembly, migrate, revisions
from app.chassis.errors import StartupError
from app.chassis.postgresql import schema
from app.chassis.postgresql.local import Server
from app.chassis.settings import PROJECT_ROOT
from app.settings import Settings

from ..production import REQUIRED

DEADLINE = 30.0

REVISION = """
from alembic import op

revision = "added"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
    op.execute("CREATE TABLE half_way (id int)")
    op.execute("%s")


def downgrade():
    pass
"""

UPGRADE = """
import sys
from pathlib import Path
from app.chassis import migrate, revisions
from app.settings import Settings

root = Path(sys.argv[1])
migrate.PROJECT_ROOT = revisions.PROJECT_ROOT = root
revisions.VERSIONS = root / "migrations" / "versions"
migrate.upgrade(Settings.load())
"""

AT_HEAD = """
import sys
from app.chassis import assembly, migrate
settings = assembly.settings_class().load()
with assembly.engine.prepare(settings, 0):
    migrate.upgrade(settings)
print([name for name in ("alembic", "sqlalchemy.orm") if name in sys.modules])
"""

Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def started(url: str) -> Iterator[Started]:
    """Start Python in the project with this database, and kill it at the end."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {"PATH": os.environ["PATH"], **REQUIRED, "DATABASE_URL": url, **variables}
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_until(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def waiting(url: str, query: str) -> int:
    """How many other sessions of the database run something like this."""
    found = f"""
        SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
        AND state = 'active' AND query LIKE '{query}' AND pid <> pg_backend_pid()
    """  # noqa: S608
    return len(rows(url, found))


def test_a_start_at_head_needs_no_lock_and_no_alembic(
    settings: Settings, url: str, started: Started
) -> None:
    migrate.upgrade(settings)
    with psycopg.connect(url) as other:
        schema.take_lock(other, "it", 0)
        output, _ = started("-c", AT_HEAD).communicate(timeout=DEADLINE)
    assert output == "[]\n"


def test_two_starts_at_once_migrate_once(settings: Settings, url: str, started: Started) -> None:
    patience = {"LOCK_TIMEOUT": "30"}
    with psycopg.connect(url, autocommit=True) as other:
        schema.take_lock(other, "it", 0)
        both = [started("-m", "app", "migrate", **patience) for _ in range(2)]
        for process in both:
            assert process.stdout is not None
            assert any("Waiting for another start or `migrate`" in line for line in process.stdout)
        assert [process.poll() for process in both] == [None, None]
    outputs = [process.communicate(timeout=DEADLINE)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    heads = ", ".join(sorted(revisions.heads_of(revisions.read_revisions(revisions.VERSIONS))))
    assert "".join(outputs).count(f"Database migrated to {heads}") == 1
    with schema.connect(settings.url) as connection:
        current = revisions.current_revisions(connection, schema.table_names(connection))
    assert current == revisions.head_revisions()


def test_a_lock_that_stays_is_refused_in_one_line(settings: Settings, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        schema.take_lock(other, "it", 0)
        impatient = settings.model_copy(update={"lock_timeout": 0})
        pid = other.info.backend_pid
        with pytest.raises(StartupError, match=rf"more than 0 s \(session {pid} of 127.0.0.1\)"):
            migrate.upgrade(impatient)


def test_it_waits_for_the_server_and_says_why(
    server: Server, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    later = threading.Timer(1, server.start)
    try:
        with pytest.raises(StartupError, match=r"cannot be used: Connection refused\. Start it "):
            schema.wait_for(settings.url, 0)
        assert not caplog.records
        later.start()
        patient = settings.model_copy(update={"lock_timeout": 30})
        assembly.engine.prepare(patient, 0).close()
    finally:
        later.join() if later.ident else server.start()
    (record,) = caplog.records
    assert record.getMessage().startswith("Waiting for the database ")
    assert record.getMessage().endswith(": Connection refused")


def test_the_wait_is_told_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "TELL_SECONDS", 0.5)
    monkeypatch.setattr(schema, "PAUSE", 0.1)
    told = list(schema.attempts(1.55))
    assert told[0]
    assert 3 <= sum(told) <= 4 < len(told)


@pytest.mark.parametrize("password", ["hunter2", "hunter2%40x"])
def test_a_refusal_shows_no_password(settings: Settings, url: str, password: str) -> None:
    host = url.partition("@")[2]
    wrong = Settings.load(database_url=f"postgresql://nobody:{password}@{host}", lock_timeout=0)
    with pytest.raises(StartupError, match="nobody") as caught:
        assembly.engine.prepare(wrong, 0)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_migration_leaves_nothing(
    settings: Settings,
    url: str,
    tmp_path: Path,
    add_revision: Callable[[str], str],
    started: Started,
    number: signal.Signals,
) -> None:
    migrate.upgrade(settings)
    head = add_revision(REVISION.replace("%s", "SELECT pg_sleep(600)"))
    process = started("-c", UPGRADE, str(tmp_path / "project"))
    wait_until(lambda: waiting(url, "%pg_sleep%"))
    process.send_signal(number)
    process.wait(DEADLINE)

    wait_until(lambda: not waiting(url, "%pg_sleep%"))
    assert rows(url, "SELECT to_regclass('half_way')") == [(None,)]
    assert (head,) in rows(url, "SELECT version_num FROM alembic_version")
    assert rows(url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == []


def test_a_revision_that_fails_leaves_nothing(
    settings: Settings, url: str, add_revision: Callable[[str], str]
) -> None:
    migrate.upgrade(settings)
    add_revision(REVISION.replace("%s", "SELECT 1 / 0"))
    with pytest.raises(StartupError, match="was rolled back"):
        migrate.upgrade(settings)
    assert rows(url, "SELECT to_regclass('half_way')") == [(None,)]


def test_a_table_in_use_is_not_waited_for_for_ever(
    settings: Settings,
    url: str,
    add_revision: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    migrate.upgrade(settings)
    add_revision(REVISION.replace("%s", "ALTER TABLE alembic_version ADD COLUMN more int"))
    monkeypatch.setattr(schema, "TABLE_SECONDS", 1)
    with psycopg.connect(url) as reader:
        reader.execute("SELECT * FROM alembic_version")
        with pytest.raises(StartupError, match="rolled back: a table was in use for 1 s"):
            migrate.upgrade(settings)
    migrate.upgrade(settings)
    assert rows(url, "SELECT to_regclass('half_way') IS NULL") == [(False,)]


def test_older_code_serves_a_newer_schema(
    settings: Settings, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    migrate.upgrade(settings)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'later'")
    migrate.upgrade(settings)
    assert "at revision later, which this code does not know" in caplog.text
    assembly.engine.checks(settings, None)["database"]()


def test_tables_without_revisions_are_refused(settings: Settings, url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE somebodys (id int)")
    with pytest.raises(StartupError, match=r"has tables \(somebodys\) and no revision") as caught:
        migrate.upgrade(settings)
    assert rows(url, "SELECT to_regclass('alembic_version')") == [(None,)]
    assert url not in str(caught.value)


def test_tables_that_no_revision_made_are_left_alone(settings: Settings, url: str) -> None:
    migrate.upgrade(settings)
    line = revisions.schemas()[-1]
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE somebodys (id int) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE a_part PARTITION OF somebodys DEFAULT")
        connection.execute("CREATE SCHEMA other; CREATE TABLE other.hidden (id int)")
        found = schema.unmanaged(connection, line)
        names = schema.table_names(connection)
    assert {"somebodys", "a_part"} <= found
    assert "alembic_version" not in names & found - {"alembic_version"}
    assert "hidden" not in found | names
    assert "a_part" not in names


def test_what_alembic_does_not_see_is_told(settings: Settings, url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('good')")
        connection.execute("CREATE TABLE people (id int, mood mood)")
    kinds = Enum("good", "bad", name="mood")
    rule = CheckConstraint("id > 0", name="positive")
    people = Table("people", MetaData(), Column("id", Integer), Column("mood", kinds), rule)
    with (
        assembly.engine.migrating(settings) as ground,
        ground.locked(),
        ground.migrated(revisions.schemas()[-1]) as (connection, _),
    ):
        lines = list(ground.unseen(connection, [people]))
    assert len(lines) == 2
    assert "Table people has no positive" in lines[0]
    assert "Type mood has no value 'bad'" in lines[1]


def test_autogenerate_finds_nothing_to_do(settings: Settings, url: str, started: Started) -> None:
    migrate.upgrade(settings)
    output, _ = started("-m", "alembic", "check").communicate(timeout=DEADLINE)
    assert "No new upgrade operations detected" in output, output


@pytest.mark.parametrize("unpooled", ["", "postgresql://app@pooler/app"])
def test_a_pooler_that_is_its_own_way_around_is_refused(
    monkeypatch: pytest.MonkeyPatch, unpooled: str
) -> None:
    pooler = Mock()
    pooler.execute.return_value.fetchone.return_value = (1,)
    pooler.info.backend_pid = 2
    monkeypatch.setattr(schema, "wait_for", lambda *_: pooler)
    address = "postgresql://app@pooler/app"
    settings = Settings.load(database_url=address, database_unpooled_url=unpooled)
    with pytest.raises(StartupError, match="is a pooler"):
        schema.reach(settings)
