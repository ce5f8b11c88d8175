"""The chassis's unit tests, in tests/chassis, pass in installed projects, and its code is clean.

CONTRIBUTING.md says how to run one of the tests by its name.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import ROOT, Answers, files, git, identify
from support.ownership import TEMPLATE, covers
from test_project import COVERING, EVERYTHING, ON_POSTGRESQL, run

HOME = ROOT / "tests" / "chassis"
SETS: list[Answers] = [
    EVERYTHING,
    {"features": ["conversations"]},
    {"backup": "litestream", "builder": "railpack", "workers": 4, "volume_path": "/mnt/vol-1"},
    {"backup": "none", "builder": "nixpacks", "python_version": "3.11", "ci": "none"},
    ON_POSTGRESQL,
]
assert all(answers in COVERING for answers in SETS)
LONG = [pytest.param(answers, marks=pytest.mark.long) for answers in SETS]
EACH = pytest.mark.parametrize(
    "answers", [{}, *LONG], ids=lambda answers: identify(answers) or "defaults"
)


@contextmanager
def laid(project: Path) -> Iterator[None]:
    """Have the tests of the chassis in a project for a while."""
    link = project / "tests" / "chassis"
    link.symlink_to(HOME)
    try:
        yield
    finally:
        link.unlink()


def fitting(project: Path) -> list[str]:
    """Return the names of the laid test files that fit a project's answers."""
    listed = run(project, "pytest", "--collect-only", "-qq", "tests/chassis")
    return sorted(set(re.findall(r"^(tests/chassis/\S+\.py)\b", listed, re.MULTILINE)))


def owned(project: Path) -> list[str]:
    """Return the names of a project's modules that belong to the template."""
    paths = [path for part in TEMPLATE for path in part["paths"]]
    return [
        name
        for name in files(project)
        if name.endswith(".py") and any(covers(path, name) for path in paths)
    ]


@EACH
def test_the_chassis_does_what_its_tests_say(
    installed: Callable[..., Path], answers: Answers, tmp_path: Path
) -> None:
    project = installed(**answers)
    # the longer ones run once on each engine, where every feature is
    which = [] if answers in [EVERYTHING, ON_POSTGRESQL] else ["-m", "not long"]
    with laid(project):
        said = run(
            project, "pytest", "--quiet", f"--basetemp={tmp_path}/tests", "tests/chassis", *which
        )
    assert " passed" in said


@pytest.mark.parametrize("answers", LONG, ids=identify)
def test_the_templates_files_keep_strict_rules(
    installed: Callable[..., Path], answers: Answers
) -> None:
    """A project's own linter and type checker leave them out."""
    project = installed(**answers)
    names = owned(project)
    for check in (["check"], ["format", "--check"]):
        run(project, "ruff", *check, "--no-cache", f"--config={HOME}/ruff.toml", *names)
    with laid(project):
        run(project, "mypy", f"--config-file={HOME}/mypy.ini", *names, *fitting(project))


@pytest.mark.long
def test_every_test_of_the_chassis_fits_some_answers(installed: Callable[..., Path]) -> None:
    found: set[str] = set()
    for answers in ({}, EVERYTHING, ON_POSTGRESQL):
        with laid(project := installed(**answers)):
            found.update(fitting(project))
    every = git(HOME, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    tests = [path for path in every if Path(path).name.startswith("test_")]
    assert found == {f"tests/chassis/{path}" for path in tests}


@pytest.mark.long
def test_a_projects_own_checks_leave_the_templates_files_out(
    installed: Callable[..., Path], tmp_path: Path
) -> None:
    """A fault in them fails nobody's push, and one in the person's own files does."""
    project = tmp_path / "project"
    shutil.copytree(installed(), project, symlinks=True)
    checks = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"])
    for name in ("app/__main__.py", "app/chassis/times.py", "tests/contract/test_http.py"):
        add_fault(project / name)
    for check in checks:
        run(project, *check)

    add_fault(project / "app" / "models.py")
    for check in checks:
        with pytest.raises(AssertionError, match="models"):
            run(project, *check)


def add_fault(module: Path) -> None:
    """Add lines that the linter, the formatter and the type checker refuse."""
    with module.open("a", encoding="utf-8") as file:
        file.write("\nimport os\nwrong:int = 'text'\n")
