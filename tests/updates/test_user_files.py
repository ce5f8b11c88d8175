"""What people wrote on any release works on the newest chassis, and warns of nothing."""

import subprocess
from pathlib import Path

import pytest

from cases import Fresh, Make
from history import VERSIONS, contents
from support import Answers, tool
from support.ownership import USER, is_theirs

ANSWERS: Answers = {
    "backup": "litestream",
    "features": ["conversations", "oauth"],
    "ai_provider": "anthropic",
    "oauth_providers": ["google", "microsoft"],
}


def run(project: Path, *command: str) -> str:
    done = subprocess.run(
        [tool("uv"), *command], cwd=project, capture_output=True, encoding="utf-8", timeout=600
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def newest(fresh: Fresh) -> Path:
    """A project of the working tree, with its environment, and none of the user's files."""
    project = fresh(ANSWERS)
    run(project, "sync", "--quiet")
    for name in USER:
        (project / name).unlink(missing_ok=True)
    return project


@pytest.mark.long
@pytest.mark.parametrize("release", VERSIONS)
def test_the_users_files_of_every_release_work(release: str, newest: Path, make: Make) -> None:
    """No answer changes a file of the user's, so the project may have every feature."""
    theirs = {
        name: content for name, content in contents(make(release, {})).items() if is_theirs(name)
    }
    assert {"app/main.py", "tests/conftest.py", "tests/test_notes.py"} <= theirs.keys()
    for name, content in theirs.items():
        (newest / name).parent.mkdir(parents=True, exist_ok=True)
        (newest / name).write_bytes(content)

    said = run(newest, "run", "pytest", "-q", "-W", "error", "tests", "--ignore=tests/contract")

    assert " passed" in said
