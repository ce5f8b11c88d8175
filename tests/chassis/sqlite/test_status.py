"""`python -m app status`: the health of the service for a person, with figures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.chassis import assembly, health, revisions
from app.chassis.cli import main
from app.chassis.sqlite.backup import backup
from app.chassis.sqlite.volume import locked
from app.settings import Settings

from .databases import make_database


def figures(settings: Settings, **extra: health.HealthCheck) -> dict[str, Any]:
    checks = {**assembly.engine.checks(settings, None), **extra}
    return health.figures(health.Health(settings, checks), assembly.engine.figures(settings))


def lines(found: dict[str, Any]) -> Iterator[str]:
    return health.figure_lines(found, assembly.engine.in_words(found))


def test_it_knows_sizes_and_the_newest_backup(settings: Settings) -> None:
    make_database(settings)
    copy = backup(settings.database_path)

    found = figures(settings)

    assert found["status"] == "ok"
    assert found["running"] is False
    assert found["database_bytes"] == settings.database_path.stat().st_size > 0
    assert found["newest_backup"] == str(copy)
    assert found["newest_backup_age"] is not None
    assert 0 <= found["newest_backup_age"] < 60
    assert found["revision"] == ", ".join(sorted(revisions.head_revisions()))
    with locked(settings.database_path):
        assert figures(settings)["running"] is True


def test_without_a_database_it_says_so(settings: Settings) -> None:
    found = figures(settings)

    assert found["status"] == "failed"
    assert found["database_bytes"] is None
    assert not settings.database_path.exists()
    assert any("the database file is missing" in line for line in lines(found))


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
    assert health.ago(seconds) == words


def test_a_check_that_fails_itself_is_a_line(settings: Settings) -> None:
    def broken() -> None:
        raise RuntimeError("password=hunter2")

    make_database(settings)

    found = figures(settings, printer=broken)

    assert found["status"] == "failed"
    (line,) = (line for line in lines(found) if line.startswith("printer "))
    assert line.endswith("failed; the check itself failed")
