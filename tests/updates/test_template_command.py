"""`python -m app template` and the weekly workflow, with Copier and a template of two releases."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import copier
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support import (
    COMBINATIONS,
    ROOT,
    Answers,
    commit,
    git,
    identify,
    load_json,
    load_toml,
    load_yaml,
    mostly_long,
    recorded,
    tool,
)

UVX = """#!/bin/sh
while test "$1" != trackbed; do shift; done
shift
PYTHONPATH={root} exec {python} -m trackbed.cli "$@"
"""

GH = """#!/bin/sh
case "$1 $2" in
  "pr view") cat "$RUNNER_TEMP/state" 2> /dev/null || exit 1 ;;
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


def environment(tmp_path: Path, *, real: bool = False) -> dict[str, str]:
    """The path has a `gh` that writes down what it is told, this Python, and a `uvx` that runs the
    package as it is here, or the real one."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "gh").write_text(GH)
    (programs / "uvx").write_text(UVX.format(python=sys.executable, root=ROOT))
    for program in programs.iterdir():
        program.chmod(0o755)
    if real:
        (programs / "uvx").unlink()
    uvx = shutil.which("uvx") or Path(tool("uv")).with_name("uvx")
    path = f"{programs}:{Path(uvx).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RUNNER_TEMP": str(tmp_path)}


def weekly(project: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """The workflow's own steps, as GitHub runs them on a checkout of the newest commit."""
    git(project, "switch", "--quiet", "main")
    job = load_yaml(project / ".github" / "workflows" / "template.yml")["jobs"]["update"]
    done = subprocess.CompletedProcess([], 0, "", "")
    for step in job["steps"]:
        if "run" not in step or step["name"] == "Install uv" or done.returncode:
            continue
        variables = {
            name: str(value) for name, value in {**job["env"], **step.get("env", {})}.items()
        }
        ran = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=project,
            env=environment(tmp_path) | variables,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        output = done.stdout + ran.stdout + ran.stderr
        done = subprocess.CompletedProcess(step["name"], ran.returncode, output, "")
    return done


def test_the_command_comes_from_the_template_itself(project: Path, tmp_path: Path) -> None:
    """By uvx, from the newest release, before the project's dependencies are installed."""
    bare = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    done = subprocess.run(
        [bare / "bin" / "python", "-m", "app", "template", "status", "--json"],
        cwd=project,
        env=environment(tmp_path, real=True),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["version"], found["newest"], found["drift"]) == ("0.1.0", "0.2.0", [])


@pytest.mark.long
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


def pushed(tmp_path: Path) -> str:
    return git(tmp_path / "origin.git", "rev-parse", "template-update").strip()


@pytest.mark.long
def test_the_same_release_is_pushed_once(project: Path, tmp_path: Path) -> None:
    assert weekly(project, tmp_path).returncode == 0
    first = pushed(tmp_path)
    (project / "app" / "settings.py").touch()
    (project / "app" / "more.py").write_text("mine = 1\n")
    git(project, "switch", "--quiet", "main")
    commit(project, "Work goes on")
    # opening the pull request had failed
    (tmp_path / "gh").unlink()
    assert weekly(project, tmp_path).returncode == 0
    assert (tmp_path / "gh").exists()
    (tmp_path / "gh").unlink()

    for state in ("OPEN", "CLOSED"):
        (tmp_path / "state").write_text(state)
        done = weekly(project, tmp_path)
        assert done.returncode == 0, done.stdout
        assert "template-update has this release already." in done.stdout
        assert not (tmp_path / "gh").exists()
    assert pushed(tmp_path) == first


@pytest.mark.long
def test_a_newer_release_replaces_what_only_the_workflow_has_made(
    project: Path, tmp_path: Path
) -> None:
    git(project, "switch", "--quiet", "--create", "template-update")
    (project / "README.md").write_text("an earlier update\n")
    bot = "41898282+github-actions[bot]@users.noreply.github.com"
    who = ("-c", f"user.email={bot}", "-c", "user.name=github-actions[bot]")
    variables = {f"GIT_{role}_EMAIL": bot for role in ("AUTHOR", "COMMITTER")}
    subprocess.run(
        ["git", *who, "commit", "-qam", "Update from the template to 0.1.5"],
        cwd=project,
        env={**os.environ, **variables},
        check=True,
    )
    git(project, "push", "--quiet", "origin", "template-update")
    git(project, "tag", "template-update", "main")  # is not the branch
    (tmp_path / "state").write_text("OPEN")

    done = weekly(project, tmp_path)

    assert done.returncode == 0, done.stdout
    assert (tmp_path / "gh").read_text(encoding="utf-8").startswith("pr\nedit\ntemplate-update\n")
    message = git(tmp_path / "origin.git", "log", "-1", "--format=%s", "template-update")
    assert message == "Update from the template to 0.2.0\n"
    assert git(tmp_path / "origin.git", "rev-list", "--count", "template-update").strip() == "2"


@pytest.mark.long
@pytest.mark.parametrize(
    "how",
    ["commit", *(pytest.param(how, marks=pytest.mark.long) for how in ("amend", "merge", "name"))],
)
def test_a_branch_on_which_somebody_has_worked_is_left_alone(
    project: Path, tmp_path: Path, how: str
) -> None:
    assert weekly(project, tmp_path).returncode == 0
    git(project, "push", "--quiet", "origin", "main")
    person = tmp_path / "person"
    git(tmp_path, "clone", "--quiet", str(tmp_path / "origin.git"), "person")
    git(person, "switch", "--quiet", "template-update")
    if how == "merge":
        (person / "x.txt").write_text("x\n")
        git(person, "switch", "--quiet", "main")
        commit(person, "Work")
        git(person, "switch", "--quiet", "template-update")
        git(person, "merge", "--quiet", "--no-edit", "main")
    else:
        (person / "app" / "chassis" / "__init__.py").write_text("# settled by hand\n")
        amend = ["--amend", "--no-edit"] if how == "amend" else ["--message", "Settle it"]
        if how == "name":  # what people are called says nothing
            bot = "41898282+github-actions[bot]@users.noreply.github.com"
            amend += ["--author", f"{bot} {bot} me <person@example.com>"]
        git(person, "commit", "--quiet", "--all", *amend)
    git(person, "push", "--quiet", "--force", "origin", "template-update")
    theirs = pushed(tmp_path)
    (tmp_path / "gh").unlink()
    (tmp_path / "state").write_text("OPEN")

    done = weekly(project, tmp_path)

    assert done.returncode == 0, done.stdout
    assert "::warning::template-update is left alone, as somebody has worked on it:" in done.stdout
    assert "Tests" in done.stdout
    assert pushed(tmp_path) == theirs
    assert not (tmp_path / "gh").exists()


@pytest.mark.long
def test_a_week_without_a_release_does_nothing(project: Path, tmp_path: Path) -> None:
    copier.run_update(project, defaults=True, overwrite=True, quiet=True)
    commit(project, "Second")
    before = git(project, "rev-parse", "HEAD")

    done = weekly(project, tmp_path)

    assert done.returncode == 0, done.stdout
    assert "This is the newest release." in done.stdout
    assert not (tmp_path / "gh").exists()
    assert git(project, "rev-parse", "main") == before
    assert git(tmp_path / "origin.git", "branch", "--list") == ""


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
    assert "<<<<<<<" in git(
        tmp_path / "origin.git", "show", "template-update:app/chassis/__init__.py"
    )
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
def test_a_lost_edit_is_a_failed_job_and_a_pull_request_that_says_so(
    project: Path, releases: Path, tmp_path: Path
) -> None:
    """0.3.0 takes a file away in which somebody has written."""
    source = tmp_path / "template"
    git(tmp_path, "clone", "--quiet", str(releases), str(source))
    git(source, "rm", "--quiet", "template/app/chassis/times.py")
    commit(source, "Third release", tag="0.3.0")
    answers = project / ".copier-answers.yml"
    text = answers.read_text(encoding="utf-8")
    answers.write_text(text.replace(str(releases), str(source)), encoding="utf-8")
    with (project / "app" / "chassis" / "times.py").open("a", encoding="utf-8") as file:
        file.write("# precious\n")
    commit(project, "Against advice")

    done = weekly(project, tmp_path)

    assert done.returncode == 1
    assert "::error::Somebody has to look at this update" in done.stdout
    told = (tmp_path / "gh").read_text(encoding="utf-8")
    assert "lost         app/chassis/times.py: precious" in told


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
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "write", "pull-requests": "write"}
    assert "TOKEN" not in str({name: job[name] for name in job.keys() - {"steps"}})
    *before, last = job["steps"]
    assert "token" not in str(before).lower().replace("no token", "")
    assert "TEMPLATE_TOKEN" in last["env"]["GH_TOKEN"]
    assert not re.search(r"\b(uvx?|python3?|pipx)\b", last["run"])
    (check_out,) = (step for step in before if "uses" in step)
    assert check_out["with"]["persist-credentials"] is False
    checks = load_yaml(project / ".github" / "workflows" / "ci.yml")["jobs"]["checks"]["steps"]
    assert check_out["uses"] in [step.get("uses") for step in checks]


@pytest.mark.parametrize(
    "answers",
    mostly_long(COMBINATIONS[:6], fast=2),
    ids=identify,
)
def test_zizmor_finds_nothing(answers: Answers, render: Callable[..., Path]) -> None:
    """Permissions, versions, credentials, and what others could put into a script."""
    workflows = render(**{**answers, "ci": "github"}) / ".github"
    command = [tool("zizmor"), "--offline", "--no-progress", "--persona", "pedantic", workflows]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No findings to report" in done.stdout


def test_trackbed_runs_with_pinned_versions() -> None:
    """All that it needs and what that needs: nothing is resolved when somebody runs it."""
    pinned = load_toml(ROOT / "pyproject.toml")
    wanted = [Requirement(text) for text in pinned["project"]["dependencies"]]
    tested = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for requirement in wanted:
        assert re.search(rf"^{re.escape(str(requirement))}(\s|$)", tested, re.M), requirement
        for text in metadata.requires(requirement.name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in {one.name for one in wanted}, needed
    assert all("==" in text for text in pinned["build-system"]["requires"])


@pytest.mark.long
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
