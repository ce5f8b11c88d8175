"""What Copier prints at the end: commands that can be pasted."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import COMBINATIONS, Answers, git, identify, mostly_long, recorded
from trackbed.internals import Worker

RunCopier = Callable[..., subprocess.CompletedProcess[str]]


def printed(
    run_copier: RunCopier,
    template: Path,
    project: Path | str,
    *options: str,
    **answers: str | int | list[str],
) -> str:
    data = [part for name, value in answers.items() for part in ("-d", f"{name}={value}")]
    done = run_copier("copy", "--defaults", *options, *data, template, project)
    assert done.returncode == 0, done.stderr
    return done.stderr[done.stderr.index("is in ") :]


def commands(message: str) -> list[str]:
    """The lines that are meant for a shell."""
    return [line.strip() for line in message.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("folder", mostly_long(["it's a service", "service", "$HOME & co"]))
def test_the_first_command_leads_into_the_project(
    run_copier: RunCopier, template: Path, tmp_path: Path, folder: str
) -> None:
    project = tmp_path / folder
    message = printed(run_copier, template, project, project_name="Billing API")

    there = f"{commands(message)[0]} && pwd -P"
    assert commands(message)[0].startswith("cd ")
    done = subprocess.run(["sh", "-c", there], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == f"{project.resolve()}\n"


def test_a_directory_that_begins_with_a_dash_is_no_option(
    run_copier: RunCopier, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = printed(run_copier, template, "./-dash/service", project_name="Billing API")

    there = f"{commands(message)[0]} && pwd -P"
    done = subprocess.run(["sh", "-c", there], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == f"{(tmp_path / '-dash' / 'service').resolve()}\n"


@pytest.mark.parametrize("answers", mostly_long(COMBINATIONS[:8], fast=2), ids=identify)
def test_every_command_is_for_these_answers(
    run_copier: RunCopier, template: Path, tmp_path: Path, answers: Answers
) -> None:
    message = printed(
        run_copier, template, tmp_path / "project", project_name="Billing API", **answers
    )

    for command in commands(message):
        assert shlex.split(command, comments=True)
    assert re.findall(r"--(?:service|name) (\S+)", message) == ["billing-api"] * 4
    postgresql = answers["database"] == "postgresql"
    assert ("service, database" in message) == postgresql
    assert ("app database" in message) == postgresql
    assert (f"volume at {answers.get('volume_path')}" in message) == (not postgresql)
    assert ("bucket" in message) == (answers["backup"] == "litestream")
    lost = "the data is lost with the"
    assert (lost in message) == (answers["backup"] == "none")
    assert ("Backups, Daily" in message) == (answers["backup"] == "railway")
    assert ("Pro plan" in message) == (answers["backup"] == "railway")
    assert ("copies are lost with the volume" in message) == (answers["backup"] == "volume")
    assert "do not read railway.json" in message
    assert "{" not in message


def test_with_sign_in_the_address_comes_before_the_service(
    run_copier: RunCopier, template: Path, tmp_path: Path
) -> None:
    message = printed(
        run_copier,
        template,
        tmp_path / "project",
        project_name="Billing API",
        features="[oauth]",
    )

    for command in commands(message):
        assert shlex.split(command, comments=True)
    assert re.findall(r"--(?:service|name) (\S+)", message) == ["billing-api"] * 4
    assert message.index("railway domain") < message.index("RUNBOOK.md, Sign-in")
    assert message.index("RUNBOOK.md, Sign-in") < message.index("railway up")


def test_a_relative_source_is_recorded_as_where_it_leads(
    run_copier: RunCopier, template: Path, tmp_path: Path
) -> None:
    """Relative to where the copy was made, it would lead nowhere from the project."""
    for place, source in ((template, "."), (template.parent, template.name)):
        project = tmp_path / f"project-{template.name}-{source.strip('.')}"
        done = run_copier("copy", "--defaults", source, project, cwd=place)
        assert done.returncode == 0, done.stderr
        assert recorded(project)["_src_path"] == str(template.resolve())
        assert f"It was made from {template.resolve()}, a directory of this machine" in done.stderr
        assert "no release" not in done.stderr


def test_a_copy_from_no_release_says_so(
    run_copier: RunCopier, template: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(template), str(clone))
    git(clone, "commit", "--quiet", "--allow-empty", "--message", "Later")
    message = printed(
        run_copier, clone, tmp_path / "project", "--vcs-ref=HEAD", project_name="Billing API"
    )
    assert "It was made from a commit that is no release" in message


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("gh:acme/trackbed", "https://github.com/acme/trackbed.git"),
        ("gl:acme/group/trackbed.git", "https://gitlab.com/acme/group/trackbed.git"),
        ("git+https://example.com/trackbed.git", "https://example.com/trackbed.git"),
        ("git+https://example.com/trackbed", "git+https://example.com/trackbed"),
        ("git@example.com:acme/trackbed.git", "git@example.com:acme/trackbed.git"),
        ("/nowhere/trackbed", "/nowhere/trackbed"),
        ("nowhere", "nowhere"),
    ],
)
def test_addresses_are_recorded_in_full(template: Path, source: str, address: str) -> None:
    """Renovate, git and uv do not know Copier's short forms."""
    text = "{% from pathjoin('hooks', 'names.jinja') import address %}{{ address(source) }}"
    with Worker(src_path=str(template)) as worker:
        assert worker.jinja_env.from_string(text).render(source=source) == address
