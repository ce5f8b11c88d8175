"""Commands of this engine: what says how copies are made, and the server of one's own machine."""

import shlex

import pytest

from app.chassis.cli import main

URL = "postgresql+psycopg://me:hunter2@db.example.com:5433/app?sslmode=require"


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["backup"], "pg_dump"),
        (["backup", "--keep", "3", "copies"], "pg_dump"),
        (["restore", "--latest"], "pg_restore"),
        (["restore", "copy.dump", "--dry-run"], "pg_restore"),
    ],
)
def test_copies_are_refused_with_the_exact_line(
    command: list[str],
    program: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    assert main(command) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "hunter2" not in told.err
    _, line = told.err.splitlines()
    words = shlex.split(line)
    assert words[0] == program
    assert any("postgresql://me@db.example.com:5433/app?sslmode=require" in word for word in words)


def test_a_copy_is_made_past_the_pooler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("DATABASE_UNPOOLED_URL", "postgres://me:hunter2@direct/app")
    assert main(["backup"]) == 1
    assert "@direct/app" in capsys.readouterr().err
