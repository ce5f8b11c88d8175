"""`python -m app template` and the weekly workflow, with Copier and a template of two releases."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import copier
import pytest

from support import commit, git, load_json, load_yaml, recorded, tool

GH = """#!/bin/sh
case "$1 $2" in
  "pr view") echo CLOSED ;;
  *) printf '%s\\n' "$@" > "$RUNNER_TEMP/gh"; cat "$RUNNER_TEMP/body.md" >> "$RUNNER_TEMP/gh" ;;
esac
"""


@pytest.fixture
def project(releases: Path, tmp_path: Path) -> Path:
    """A project of the template's first release, in a repository with a remote."""
    project = tmp_path / "project"
    copier.run_copy(
        str(releases),
        project,
        vcs_ref="0.1.0",
        data={"project_name": "Billing API"},
        defaults=True,
        quiet=True,
    )
    commit(project, "First")
    git(project, "branch", "--move", "--force", "main")
    git(tmp_path, "init", "--quiet", "--bare", "origin.git")
    git(project, "remote", "add", "origin", str(tmp_path / "origin.git"))
    return project


def environment(tmp_path: Path) -> dict[str, str]:
    """The path has `uvx`, a `gh` that writes down what it is told, and this Python."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "gh").write_text(GH)
    (programs / "gh").chmod(0o755)
    uvx = shutil.which("uvx") or Path(tool("uv")).with_name("uvx")
    path = f"{programs}:{Path(uvx).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RUNNER_TEMP": str(tmp_path)}


def template(project: Path, tmp_path: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "app", "template", *arguments],
        cwd=project,
        env=environment(tmp_path),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def weekly(project: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """The workflow's own script, as GitHub runs it."""
    job = load_yaml(project / ".github" / "workflows" / "template.yml")["jobs"]["update"]
    variables = {name: value for name, value in job["env"].items() if name != "GH_TOKEN"}
    return subprocess.run(
        ["bash", "-e", "-c", job["steps"][-1]["run"]],
        cwd=project,
        env=environment(tmp_path) | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def test_status_and_diff_tell_what_is_so(project: Path, tmp_path: Path) -> None:
    code, told = template(project, tmp_path, "status", "--json")
    found = json.loads(told)
    assert code == 1
    assert (found["version"], found["newest"]) == ("0.1.0", "0.2.0")
    assert found["drift"] == []

    changed = project / "app" / "chassis" / "http.py"
    changed.write_text(f"{changed.read_text(encoding='utf-8')}# mine\n", encoding="utf-8")
    (project / "tests" / "chassis" / "test_http.py").unlink()
    (project / "app" / "main.py").write_text("# mine\n")
    code, told = template(project, tmp_path, "status")
    assert code == 1
    assert told.splitlines()[-2:] == [
        "          changed app/chassis/http.py",
        "          missing tests/chassis/test_http.py",
    ]
    code, told = template(project, tmp_path, "diff")
    assert code == 1
    assert "+# mine" in told
    assert "main.py" not in told


@pytest.mark.long
def test_a_template_that_is_gone_is_one_line(project: Path, tmp_path: Path) -> None:
    answers = project / ".copier-answers.yml"
    text = answers.read_text(encoding="utf-8")
    source = recorded(project)["_src_path"]
    answers.write_text(text.replace(source, f"{tmp_path}/gone"), encoding="utf-8")

    for task in ("status", "diff", "notes"):
        code, told = template(project, tmp_path, task)
        assert code == 2
        assert told.startswith("Template: ")
        assert told.count("\n") == 1


def test_the_weekly_pull_request(project: Path, tmp_path: Path) -> None:
    """With the upgrade notes of the jump."""
    done = weekly(project, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    told = (tmp_path / "gh").read_text(encoding="utf-8")
    assert told.startswith("pr\ncreate\n--base\nmain\n--head\ntemplate-update\n")
    assert "Update from the template to 0.2.0" in told
    assert "## 0.2.0" in told
    assert "## 0.1.0" not in told
    git(project, "fetch", "--quiet", "origin")
    pushed = git(project, "show", "origin/template-update:.copier-answers.yml")
    assert "_commit: 0.2.0" in pushed
    assert "new in 0.2.0" in git(project, "show", "origin/template-update:app/chassis/__init__.py")


@pytest.mark.long
def test_a_week_without_a_release_does_nothing(project: Path, tmp_path: Path) -> None:
    copier.run_update(project, defaults=True, overwrite=True, quiet=True)
    commit(project, "Second")
    before = git(project, "rev-parse", "HEAD")

    done = weekly(project, tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "This is the newest release." in done.stdout
    assert not (tmp_path / "gh").exists()
    assert git(project, "rev-parse", "HEAD") == before
    assert git(project, "branch", "--show-current").strip() == "main"


@pytest.mark.long
def test_a_conflict_is_a_failed_job_and_a_pull_request_that_says_so(
    project: Path, tmp_path: Path
) -> None:
    file = project / "app" / "chassis" / "__init__.py"
    file.write_text(f"{file.read_text(encoding='utf-8')}# mine\n", encoding="utf-8")
    commit(project, "Against advice")

    done = weekly(project, tmp_path)

    assert done.returncode == 1
    assert "::error::These files have to be settled by hand: app/chassis/__init__.py" in done.stdout
    told = (tmp_path / "gh").read_text(encoding="utf-8")
    assert "## To settle by hand\n\n- `app/chassis/__init__.py`\n" in told

    # what was pushed is refused by the checks, until somebody has settled it
    assert refused(project).stdout == (
        "::error::These files have to be settled by hand: app/chassis/__init__.py\n"
    )
    file.write_text("# settled\n", encoding="utf-8")
    (project / "x.rej").write_text("x\n")
    commit(project, "Settled, nearly")
    assert refused(project).stdout.endswith(": x.rej\n")
    (project / "x.rej").unlink()
    commit(project, "Settled")
    assert refused(project).returncode == 0


def refused(project: Path) -> subprocess.CompletedProcess[str]:
    """The step of the checks that looks for leftovers."""
    steps = load_yaml(project / ".github" / "workflows" / "ci.yml")["jobs"]["checks"]["steps"]
    (script,) = (step["run"] for step in steps if step["name"].startswith("Refuse"))
    return subprocess.run(
        ["bash", "-e", "-c", script], cwd=project, capture_output=True, encoding="utf-8"
    )


@pytest.mark.long
def test_a_template_that_cannot_be_asked_is_a_failed_job(project: Path, tmp_path: Path) -> None:
    answers = project / ".copier-answers.yml"
    text = answers.read_text(encoding="utf-8")
    answers.write_text(text.replace(recorded(project)["_src_path"], "/gone"), encoding="utf-8")
    commit(project, "Second")

    done = weekly(project, tmp_path)

    assert done.returncode == 1
    assert "::error::The template cannot be asked" in done.stdout


def test_the_workflow_has_what_it_needs_and_no_more(render: Callable[..., Path]) -> None:
    project = render(ci="github")
    workflow = load_yaml(project / ".github" / "workflows" / "template.yml")
    assert workflow["permissions"] == {"contents": "write", "pull-requests": "write"}
    (job,) = workflow["jobs"].values()
    assert "permissions" not in job
    (check_out,) = (step["uses"] for step in job["steps"] if "uses" in step)
    checks = load_yaml(project / ".github" / "workflows" / "ci.yml")["jobs"]["checks"]["steps"]
    assert check_out in [step.get("uses") for step in checks]
    module = (project / "app" / "chassis" / "template.py").read_text(encoding="utf-8")
    assert f'COPIER: Final = "{job["env"]["COPIER"]}"' in module


def test_renovates_command_needs_no_trust(
    project: Path, run_copier: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """What its manager for Copier runs; it never adds --trust by itself."""
    rules = load_json(project / "renovate.json")
    assert [rule["matchManagers"] for rule in rules["packageRules"]] == [["copier"]]
    options = ["--skip-answered", "--defaults", "--answers-file", ".copier-answers.yml"]

    done = run_copier("update", *options, "--vcs-ref", "0.2.0", cwd=project)

    assert done.returncode == 0, done.stderr
    assert recorded(project)["_commit"] == "0.2.0"
    assert git(project, "diff", "--name-only", "--diff-filter=U") == ""
