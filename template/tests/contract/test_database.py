# Belongs to the template: your own tests go into tests/, beside this directory.
"""Tests of the database, its schema, its writers, and the meaning of an answer."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from app.chassis import assembly, migrate, revisions
from app.chassis.settings import PROJECT_ROOT
from app.chassis.testing import outside
from app.settings import Settings

from .probes import count


def test_a_new_database_gets_to_the_newest_revision(settings: Settings) -> None:
    with assembly.engine.migrating(settings) as ground, ground.connected() as connection:
        found = revisions.current_revisions(connection, ground.table_names(connection))
    assert found == revisions.head_revisions()


def test_the_models_are_what_the_migrations_make(settings: Settings) -> None:
    """Demand a revision, which `uv run alembic revision --autogenerate` makes, for each change."""
    file = PROJECT_ROOT / "pyproject.toml"
    command.check(Config(toml_file=file, attributes={"database": settings}))


def test_no_update_is_lost(probed: TestClient) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: probed.post("/contract/write"), range(160)))

    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json() for answer in answers) == list(range(1, 161))


def test_a_reader_cannot_write(probed: TestClient) -> None:
    assert probed.get("/contract/write-as-reader").status_code >= 500
    assert probed.get("/contract/read").json() == 0


def test_an_answer_comes_after_the_commit(probed: TestClient, settings: Settings) -> None:
    # An answer that does not wait for the commit would be here first
    engine = probed.app.state.database.writer.engine  # type: ignore[attr-defined]
    event.listen(engine, "commit", lambda _: time.sleep(0.2))

    assert probed.post("/contract/write").json() == 1
    assert outside(settings, count) == 1


@pytest.mark.skipif(not revisions.head_revisions(), reason="there is no revision yet")
def test_a_copy_brings_tables_and_data_back(
    probed: TestClient, settings: Settings, tmp_path: Path
) -> None:
    backup = pytest.importorskip("app.chassis.sqlite.backup", reason="only a file has copies")
    probed.post("/contract/write")
    copy = backup.backup(tmp_path / "app.db", tmp_path / "copy.db.gz")
    probed.post("/contract/write")
    file = tmp_path / "restored.db"
    restored = Settings.load(database_url=f"sqlite:///{file}")

    assert backup.restore(copy, file, migrate.upgrade) is None
    assert backup.restore(copy, file, migrate.upgrade) is not None
    assert outside(restored, count) == 1
    tables = text("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    new, old = (outside(one, lambda one: one.execute(tables).all()) for one in (restored, settings))
    assert new == old != []
