"""`trackbed update` from every release: what plain `copier update` has as a conflict, or loses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cases import Make
from history import NEXT, VERSIONS, RunCopier, conflicts, contents, update
from support import ROOT, commit, git, recorded, tool

BEFORE_CONTRACT = VERSIONS[: VERSIONS.index("0.4.1") + 1]
"""Releases that have tests/chassis, and neither tests/contract nor .gitattributes."""

OWN = ["aiosqlite", "jinja2", "pandas", "sqlmodel", "stripe", "tenacity", "zstandard"]
OWN_TOOLS = ["freezegun", "ipdb", "mutmut", "polyfactory", "respx", "types-requests"]


def trackbed(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trackbed.cli", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=400,
    )


def add_dependencies(project: Path) -> None:
    for options, names in (([], OWN), (["--dev"], OWN_TOOLS)):
        command = [tool("uv"), "add", "--quiet", "--frozen", *options, *names]
        subprocess.run(command, cwd=project, check=True)
    commit(project, "Dependencies")


def settles_dependencies(release: str, make: Make) -> None:
    project = make(release, {"backup": "litestream"})
    add_dependencies(project)

    done = trackbed(project, "update", "--no-lock")

    assert done.returncode == 0, done.stdout + done.stderr
    assert recorded(project)["_commit"] == NEXT
    assert conflicts(project) == set()
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    for name in OWN + OWN_TOOLS:
        assert text.count(f'    "{name}",\n') == 1, name
    # the next update finds them where newer ones are added
    for anchor, names in (("`uv add NAME`", OWN), ("`uv add --dev NAME`", OWN_TOOLS)):
        below = text.partition(anchor)[2].partition("]")[0]
        assert all(f'"{name}"' in below for name in names)


@pytest.mark.long
def test_dependencies_are_settled(make: Make) -> None:
    settles_dependencies(VERSIONS[0], make)


@pytest.mark.long
@pytest.mark.parametrize("release", VERSIONS[1:])
def test_dependencies_are_settled_from_every_release(release: str, make: Make) -> None:
    settles_dependencies(release, make)


@pytest.mark.long
@pytest.mark.parametrize("release", VERSIONS)
def test_an_edit_that_goes_with_its_file_is_told(release: str, make: Make) -> None:
    project = make(release, {"backup": "litestream"})
    module = project / "app/chassis/litestream.py"
    # later releases have it as a package; an answer takes that away
    if not module.exists():
        module = project / "app/chassis/litestream/settings.py"
    with module.open("a", encoding="utf-8") as file:
        file.write("\nPRECIOUS = 3\n")
    commit(project, "Against advice")

    done = trackbed(project, "update", "--no-lock", "-d", "backup=railway")

    assert done.returncode == 1, done.stdout + done.stderr
    name = module.relative_to(project).as_posix()
    (lost,) = [line for line in done.stdout.splitlines() if line.startswith("lost ")]
    assert lost.startswith(f"lost         {name}: ")
    assert "PRECIOUS" in lost


def has(project: Path, directory: str) -> bool:
    return any(name.startswith(f"{directory}/") for name in contents(project))


@pytest.mark.long
@pytest.mark.parametrize("release", BEFORE_CONTRACT)
def test_the_chassis_tests_go_and_an_edit_in_them_is_told(release: str, make: Make) -> None:
    project = make(release, {})
    test = project / "tests/chassis/test_http.py"
    with test.open("a", encoding="utf-8") as file:
        file.write("\nPRECIOUS = 3\n")
    commit(project, "Against advice")

    done = trackbed(project, "update", "--no-lock")

    assert done.returncode == 1, done.stdout + done.stderr
    (lost,) = [line for line in done.stdout.splitlines() if line.startswith("lost ")]
    assert lost.startswith("lost         tests/chassis/test_http.py: ")
    assert "PRECIOUS" in lost
    assert has(project, "tests/contract")
    assert not has(project, "tests/chassis")


@pytest.mark.long
@pytest.mark.parametrize("release", [BEFORE_CONTRACT[-1]])
def test_tests_that_were_deleted_stay_so(
    release: str, make: Make, run_copier: RunCopier, tmp_path: Path
) -> None:
    """With plain Copier too, which Renovate runs."""
    project = make(release, {})
    git(project, "rm", "-qr", "tests/chassis")
    commit(project, "Without the template's tests")
    other = tmp_path / "[brackets] in the path"
    git(tmp_path, "clone", "-q", str(project), str(other))
    git(other, "revert", "--no-edit", "HEAD")

    update(run_copier, project)
    assert not has(project, "tests/contract")
    assert not has(project, "tests/chassis")
    update(run_copier, other)
    assert has(other, "tests/contract")
    assert not has(other, "tests/chassis")


@pytest.mark.long
def test_attributes_of_ones_own_are_kept(make: Make) -> None:
    """The template has brought the file later than people may have made one."""
    project = make(BEFORE_CONTRACT[-1], {})
    (project / ".gitattributes").write_text("*.png filter=lfs\n", encoding="utf-8")
    commit(project, "Attributes")

    done = trackbed(project, "update", "--no-lock")

    text = (project / ".gitattributes").read_text(encoding="utf-8")
    assert "*.png filter=lfs\n" in text
    assert "tests/contract/** linguist-generated\n" in text
    assert done.returncode == 1, "both sides are there, and marked"
