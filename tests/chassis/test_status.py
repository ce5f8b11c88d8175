"""`status`: what a person needs to know, in figures."""

import json
from pathlib import Path

import pytest

from app.chassis import migrate, status
from app.chassis.cli import main
from app.chassis.sqlite.backup import backup
from app.chassis.sqlite.volume import locked
from app.settings import Settings

from .databases import make_database


def test_it_knows_sizes_and_the_newest_backup(settings: Settings) -> None:
    make_database(settings.database_path)
    copy = backup(settings.database_path)

    found = status.report(settings)

    assert found["status"] == "ok"
    assert found["running"] is False
    assert found["database_bytes"] == settings.database_path.stat().st_size > 0
    assert found["newest_backup"] == str(copy)
    assert found["newest_backup_age"] is not None
    assert 0 <= found["newest_backup_age"] < 60
    assert found["revision"] == ", ".join(sorted(migrate.head_revisions()))
    with locked(settings.database_path):
        assert status.report(settings)["running"] is True


def test_without_a_database_it_says_so(settings: Settings) -> None:
    found = status.report(settings)

    assert found["status"] == "failed"
    assert found["database_bytes"] is None
    assert not settings.database_path.exists()
    assert any("the database file is missing" in line for line in status.lines(found))


def test_the_command_and_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    assert main(["status"]) == 1
    assert main(["migrate"]) == 0
    capsys.readouterr()

    assert main(["status"]) == 0
    assert "newest backup" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ok"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 seconds ago"),
        (1.9, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7300, "2 hours ago"),
        (90000, "1 day ago"),
    ],
)
def test_ages_are_in_words(seconds: float, words: str) -> None:
    assert status.ago(seconds) == words
