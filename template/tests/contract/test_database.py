# Belongs to the template: your own tests go into tests/, beside this directory.
"""Tests of the database, its schema, its writers, and the meaning of an answer."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event

from app.chassis import migrate, revisions
from app.chassis.settings import PROJECT_ROOT
from app.chassis.sqlite import backup
from app.chassis.sqlite.driver import open_database
from app.chassis.sqlite.schema import current_revisions


def ask(database: Path, query: str = "PRAGMA user_version") -> list[Any]:
    with closing(open_database(database)) as connection:
        return connection.execute(query).fetchall()


def test_a_new_database_gets_to_the_newest_revision(database: Path) -> None:
    with closing(open_database(database)) as connection:
        assert current_revisions(connection) == revisions.head_revisions()


def test_the_models_are_what_the_migrations_make(database: Path) -> None:
    """Demand a revision, which `uv run alembic revision --autogenerate` makes, for each change."""
    attributes = {"database": database}
    command.check(Config(toml_file=PROJECT_ROOT / "pyproject.toml", attributes=attributes))


def test_no_update_is_lost(probed: TestClient) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: probed.post("/contract/write"), range(160)))

    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json() for answer in answers) == list(range(1, 161))


def test_a_reader_cannot_write(probed: TestClient) -> None:
    assert probed.get("/contract/write-as-reader").status_code >= 500
    assert probed.get("/contract/read").json() == 0


def test_an_answer_comes_after_the_commit(app: FastAPI, probed: TestClient, database: Path) -> None:
    # An answer that does not wait for the commit would be here first
    event.listen(app.state.database.writer.engine, "commit", lambda _: time.sleep(0.2))

    assert probed.post("/contract/write").json() == 1
    assert ask(database) == [(1,)]


@pytest.mark.skipif(not revisions.head_revisions(), reason="there is no revision yet")
def test_a_copy_brings_tables_and_data_back(
    probed: TestClient, database: Path, tmp_path: Path
) -> None:
    tables = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
    probed.post("/contract/write")
    copy = backup.backup(database, tmp_path / "copy.db.gz")
    probed.post("/contract/write")
    restored = tmp_path / "restored.db"

    assert backup.restore(copy, restored, migrate.upgrade) is None
    kept = backup.restore(copy, restored, migrate.upgrade)
    assert kept is not None
    assert ask(restored) == [(1,)]
    assert ask(restored, tables) == ask(database, tables) != []
