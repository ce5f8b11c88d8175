"""The unit tests of app/chassis, in tests/chassis, pass in installed projects.

CONTRIBUTING.md says how to run one of them by its name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import ROOT, Answers, identify
from test_project import COVERING, run

HOME = ROOT / "tests" / "chassis"
LONG = [pytest.param(answers, marks=pytest.mark.long) for answers in COVERING]


@contextmanager
def laid(project: Path) -> Iterator[None]:
    """Have the tests of the chassis in a project for a while."""
    link = project / "tests" / "chassis"
    link.symlink_to(HOME)
    try:
        yield
    finally:
        link.unlink()


@pytest.mark.parametrize(
    "answers", [{}, *LONG], ids=lambda answers: identify(answers) or "defaults"
)
def test_the_chassis_does_what_its_tests_say(
    installed: Callable[..., Path], answers: Answers, tmp_path: Path
) -> None:
    project = installed(**answers)
    with laid(project):
        said = run(project, "pytest", "--quiet", f"--basetemp={tmp_path}/tests", "tests/chassis")
    assert " passed" in said
