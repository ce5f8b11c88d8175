"""`python -m app template` finds the template's command; the process is not replaced here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.chassis import cli
from app.chassis.cli import TemplateError

ANSWERS = "_commit: {version}\n_src_path: {source}\nbackup: none\nvolume_path: /data\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with releases, and tags that are none."""
    source = tmp_path / "it's the template"
    source.mkdir()
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (
        ["init", "-q"],
        [*identity, "commit", "-q", "--allow-empty", "-m", "x"],
        *(["tag", tag] for tag in ("0.9.0", "0.10.0", "0.11.0rc1", "newest")),
    ):
        subprocess.run(["git", *command], cwd=source, check=True)
    return source


@pytest.fixture
def project(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's answers, and the script in the path."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setattr(cli, "ROOT", root)
    write(root, "0.9.0", quoted(source))
    script = tmp_path / "bin" / "uvx"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "execv", lambda _, command: print(*command[1:]))
    return root


def hand_over(*arguments: str) -> None:
    given = ["template", *arguments]
    cli.template(cli.make_parser(given).parse_args(given))


def quoted(path: Path) -> str:
    """A path as YAML writes it."""
    return "'" + str(path).replace("'", "''") + "'"


def write(root: Path, version: str, source: str, name: str = ".copier-answers.yml") -> None:
    text = ANSWERS.format(version=version, source=source)
    (root / name).write_text(text, encoding="utf-8")


def test_it_becomes_the_newest_releases_command(
    project: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hand_over("update", "-d", "backup=none")

    assert capsys.readouterr().out == (
        f"--quiet --python {sys.executable} --from git+{source.as_uri()}@0.10.0 trackbed "
        f"-C {project} update -d backup=none -a .copier-answers.yml\n"
    )


def test_a_hash_that_begins_with_digits_is_no_version(
    project: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is recorded by a copy of a commit without a tag; trackbed says what to do."""
    write(project, "3773d27", quoted(source))

    hand_over("status")

    assert "@0.10.0 trackbed" in capsys.readouterr().out


def test_another_templates_answers_are_not_ours(project: Path, source: Path) -> None:
    (project / ".copier-answers.other.yml").write_text("_commit: 9\n_src_path: /x\n")
    assert cli.recorded() == (".copier-answers.yml", "0.9.0", str(source))

    write(project, "0.9.0", "/x", ".copier-answers.copy.yml")
    with pytest.raises(TemplateError, match="keep one of"):
        cli.recorded()


def test_a_long_source_is_read_over_its_lines(project: Path) -> None:
    write(project, "0.9.0", "/a directory\n  of many words")

    assert cli.recorded() == (".copier-answers.yml", "0.9.0", "/a directory of many words")


@pytest.mark.parametrize(
    ("answers", "told"),
    [(None, "is missing"), ("volume_path: /data\n", "has no version"), ("a: 1\n", "is missing")],
)
def test_without_a_version_nothing_can_be_told(
    project: Path, answers: str | None, told: str
) -> None:
    file = project / ".copier-answers.yml"
    if answers is None:
        file.unlink()
    else:
        file.write_text(answers, encoding="utf-8")

    with pytest.raises(TemplateError, match=told) as caught:
        hand_over("status")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("version", "place", "told"),
    [
        ("0.9.0", "/gone", "/gone cannot be read: '/gone' does not appear to be a git repository"),
        ("0.9.0", "https://me:secret@127.0.0.1:1/x.git", "127.0.0.1:1/x.git cannot be read"),
        ("1.0.0", None, "has no release that is 1.0.0 or newer"),
        ("0.9.0", ".", ". led to the template only from where this was copied; write its address"),
    ],
)
def test_a_template_that_cannot_be_asked_is_one_line(
    project: Path, source: Path, version: str, place: str | None, told: str
) -> None:
    write(project, version, place or quoted(source))

    with pytest.raises(TemplateError) as caught:
        hand_over("status")

    assert told in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_uvx_it_says_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("UV", "/opt/uv")
    assert cli.find_uvx() == ["/opt/uv", "tool", "run"]

    monkeypatch.delenv("UV")
    with pytest.raises(TemplateError, match="install uv"):
        hand_over("status")


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("gh:owner/name", "https://github.com/owner/name.git"),
        ("gl:owner/name.git", "https://gitlab.com/owner/name.git"),
        ("git+https://example.com/x.git", "https://example.com/x.git"),
        ("git@example.com:a/b.git", "ssh://git@example.com/a/b.git"),
        ("/srv/a b", "file:///srv/a%20b"),
    ],
)
def test_addresses_are_written_out(source: str, address: str) -> None:
    assert cli.address_of(source) == address


def test_versions_are_compared_as_numbers() -> None:
    assert cli.number("0.9.0") < cli.number("0.10.0")
    assert cli.number("v1.2") == cli.number("1.2-3-gabcdef")
    assert cli.number("abcdef") == ()
