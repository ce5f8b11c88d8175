"""The commands about the file and its copies."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from app.chassis import answers
from app.chassis.cli import main
from app.chassis.sqlite.driver import open_database
from app.chassis.sqlite.volume import locked


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")


@pytest.mark.parametrize(
    "arguments",
    [
        ["backup", "--keep", "0"],
        ["restore"],
        ["restore", "copy.db", "--latest"],
        ["restore", "--at", "yesterday"],
        ["restore", "--at", "2026-01-31T09:30:00"],
        ["restore", "--at", "2999-01-31T09:30:00Z"],
    ],
)
def test_a_mistyped_command_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "usage: python -m app" in capsys.readouterr().err


def test_migrate_then_backup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.db"

    assert main(["migrate"]) == 0
    assert main(["backup", str(copy)]) == 0

    assert capsys.readouterr().out.endswith(f"{copy}: {copy.stat().st_size} bytes\n")
    connection = open_database(copy)
    assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    connection.close()


def test_a_restore_waits_for_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.db"
    main(["migrate"])
    main(["backup", str(copy)])
    capsys.readouterr()

    with locked(tmp_path / "app.db"):
        assert main(["restore", str(copy)]) == 1
    assert "is in use by another service" in capsys.readouterr().err

    assert main(["restore", "--dry-run", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy} can be restored\n"
    assert main(["restore", str(copy)]) == 0
    assert "is now the database" in capsys.readouterr().out


@pytest.mark.skipif(answers.BACKUP == "litestream", reason="the newest copy is in the bucket")
def test_the_newest_copy_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["migrate"])
    assert main(["restore", "--latest"]) == 1
    assert capsys.readouterr().err == "Restore: there is no copy.\n"

    assert main(["backup", "--keep", "2"]) == 0
    assert main(["restore", "--latest"]) == 0
    assert "the newest copy is now the database" in capsys.readouterr().out
    assert main(["restore", "--at", "2026-01-01T00:00:00Z"]) == 1
    assert "no copy of 2026-01-01 00:00:00+00:00 or before" in capsys.readouterr().err


def test_an_error_is_one_line_and_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backup", str(tmp_path / "copy.db")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume with a database into which this user may not look, also where that is root."""
    directory = tmp_path / "closed"
    directory.mkdir()
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{directory}/app.db")

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{directory}/"):
            refuse(path)
        return real_stat(path, *arguments, **options)

    def scandir(path: Any = ".") -> Any:
        if str(path).startswith(str(directory)):
            refuse(path)
        return real_scandir(path)

    real_stat, real_scandir = os.stat, os.scandir
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: refuse(options["dir"]))
    return directory


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["migrate"], "Storage: cannot write to "),
        (["restore", "--latest"], "Storage: cannot write to "),
        (["backup"], "app.db cannot be used as uid "),
        (["check"], "app.db cannot be read as uid "),
        (["status"], "newest backup  none"),
    ],
)
def test_a_volume_that_may_not_be_looked_into_is_told_in_lines(
    arguments: list[str], told: str, closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1

    captured = capsys.readouterr()
    assert str(closed) in captured.out + captured.err
    assert told in captured.out + captured.err
    assert captured.err.count("\n") <= 1
