"""The commands that come back, on either engine; starting the service is in test_boot.py."""

import gc
from pathlib import Path

import pytest

from app.chassis.cli import main
from app.chassis.testing import new_database


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", new_database(tmp_path))


@pytest.mark.parametrize("arguments", [["bakcup"], ["serve", "--relaod"]])
def test_a_mistyped_command_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "usage: python -m app" in capsys.readouterr().err


def test_migrate_and_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate"]) == 0
    assert main(["migrate"]) == 0
    assert main(["status"]) == 0

    assert "database       ok" in capsys.readouterr().out


def test_a_bad_setting_is_told_without_its_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "hunter2")
    assert main(["migrate"]) == 78
    error = capsys.readouterr().err
    assert "PORT: " in error
    assert "hunter2" not in error


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    output = capsys.readouterr().out
    commands = ("start", "serve", "migrate", "check", "settings", "status", "backup", "restore")
    for command in commands:
        assert f"    {command} " in output


def test_a_start_that_is_refused_leaves_the_collector_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "no number")

    assert main(["start"]) == 78
    assert "PORT" in capsys.readouterr().err
    assert gc.isenabled()
    assert not gc.get_freeze_count()
