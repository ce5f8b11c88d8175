# Belongs to the template: your own tests go into tests/, beside this directory.
"""How the project stands to its template; Copier is a script that says what the test tells it."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from app.chassis import cli, template
from app.chassis.template import Recorded, TemplateError

OWNED = "# Belongs to the template: here\n"

UVX = """#!/bin/sh
shift 4
case $1 in
  check-update) echo '{answer}' ;;
  copy) for last; do :; done; cp -r {fresh} "$last" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of version 0.1.0, as it was rendered."""
    root = tmp_path / "project"
    for base in (root, tmp_path / "fresh"):
        (base / "app").mkdir(parents=True)
        (base / "app" / "http.py").write_text(f"{OWNED}a = 1\n", encoding="utf-8")
        (base / "app" / "main.py").write_text("mine = 1\n", encoding="utf-8")
        (base / template.ANSWERS).write_text(
            "_commit: 0.1.0\n_src_path: 'it''s'\nbackup: none\n", encoding="utf-8"
        )
    monkeypatch.setattr(template, "ROOT", root)
    answer(tmp_path, monkeypatch, "0.1.0")
    return root


def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest: str) -> None:
    """Put the script first in the path."""
    found = {"update_available": newest != "0.1.0", "latest_version": newest}
    script = tmp_path / "bin" / "uvx"
    script.parent.mkdir(exist_ok=True)
    script.write_text(UVX.format(answer=json.dumps(found), fresh=tmp_path / "fresh"))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["template", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_fresh_project_is_in_step(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, "status")

    assert code == 0
    assert "0.1.0, the newest" in told
    assert "drift     0 of" in told
    assert run(capsys, "diff") == (0, "")


def test_a_newer_release_is_told(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer(tmp_path, monkeypatch, "0.2.0")

    code, told = run(capsys, "status", "--json")

    assert code == 1
    assert json.loads(told) == {
        "source": "it's",
        "version": "0.1.0",
        "newest": "0.2.0",
        "update_available": True,
        "drift": [],
    }


def test_a_changed_and_a_missing_file_are_drift(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fresh" / "app" / "logs.py").write_text(OWNED, encoding="utf-8")
    (project / "app" / "http.py").write_text(f"{OWNED}a = 2\n", encoding="utf-8")
    (project / "app" / "main.py").write_text("mine = 2\n", encoding="utf-8")

    code, told = run(capsys, "status")
    assert code == 1
    assert told.splitlines()[-2:] == [
        "          changed app/http.py",
        "          missing app/logs.py",
    ]

    code, told = run(capsys, "diff")
    assert code == 1
    assert "-a = 1\n+a = 2\n" in told
    assert "main.py" not in told


def test_line_endings_are_no_drift(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "app" / "http.py").write_bytes(f"{OWNED}a = 1\n".replace("\n", "\r\n").encode())

    assert run(capsys, "status")[0] == 0


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (None, "is missing"),
        ("backup: none\n", "has no version"),
        ("_src_path: x\n", "has no version"),
    ],
)
def test_without_a_version_nothing_can_be_told(
    project: Path, capsys: pytest.CaptureFixture[str], answers: str | None, told: str
) -> None:
    file = project / template.ANSWERS
    if answers is None:
        file.unlink()
    else:
        file.write_text(answers, encoding="utf-8")

    code, text = run(capsys, "status")

    assert code == 2
    assert told in text
    assert text.count("\n") == 1


def test_without_uvx_it_says_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    code, told = run(capsys, "status")

    assert code == 2
    assert "install uv" in told


def test_a_failure_of_copier_is_one_line(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bin" / "uvx").write_text("#!/bin/sh\necho first >&2\necho no way >&2\nexit 1\n")

    code, told = run(capsys, "diff")

    assert (code, told) == (2, "Template: copier copy failed: no way\n")


def test_the_notes_of_the_jump_are_shown(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "source"
    (source / "docs").mkdir(parents=True)
    page = "# Upgrading\n\n## 0.10.0\n\nTen.\n\n## 0.2.0\n\nTwo.\n\n## 0.1.0\n\nOne.\n"
    (source / template.NOTES).write_text(page, encoding="utf-8")
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "first"],
        ["tag", "0.10.0"],
    ):
        subprocess.run(["git", *command], cwd=source, check=True)
    monkeypatch.setattr(template, "recorded", lambda: Recorded("0.1.0", str(source)))
    answer(tmp_path, monkeypatch, "0.10.0")

    assert run(capsys, "notes") == (0, "## 0.10.0\n\nTen.\n\n## 0.2.0\n\nTwo.\n")


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("gh:owner/name", "https://github.com/owner/name.git"),
        ("gl:owner/name", "https://gitlab.com/owner/name.git"),
        ("git+https://example.com/x.git", "https://example.com/x.git"),
        ("/srv/x", "/srv/x"),
    ],
)
def test_short_addresses_are_written_out(source: str, address: str) -> None:
    assert template.git_address(source) == address


def test_versions_are_compared_as_numbers() -> None:
    assert template.number("0.9.0") < template.number("0.10.0")
    assert template.number("v1.2") == template.number("1.2-3-gabcdef")
    assert template.number("abcdef") == ()


def test_an_error_is_the_commands_own() -> None:
    assert TemplateError("x").exit_code == 2
