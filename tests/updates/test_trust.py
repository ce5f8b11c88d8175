"""The copier command without --trust, from the first copy to an update of an edited project."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import copier
import pytest

from support import commit, files, git, recorded

RunCopier = Callable[..., CompletedProcess[str]]

NEW = "# new in 0.2.0"
MINE = "# mine"

EDITED = ["app/main.py", "app/settings.py", "app/models.py", "app/chassis/health.py"]
EXAMPLE = "app/api/notes.py"


def append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_copy_and_update(releases: Path, run_copier: RunCopier, tmp_path: Path) -> None:
    project = tmp_path / "billing"
    done = run_copier("copy", "--defaults", "--vcs-ref", "0.1.0", releases, project)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert recorded(project)["_commit"] == "0.1.0"
    for name in EDITED:
        append(project / name, MINE)
    (project / EXAMPLE).unlink()
    commit(project, "Work on the project")

    done = run_copier("update", "--defaults", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert recorded(project)["_commit"] == "0.2.0"
    assert lines(project / "app/chassis/__init__.py")[-1] == NEW
    for name in EDITED:
        assert lines(project / name)[-1] == MINE, name
        assert NEW not in lines(project / name), name
    assert not (project / EXAMPLE).exists()
    # Nothing else has changed, and nothing is in conflict.
    assert git(project, "status", "--porcelain").splitlines() == [
        " M .copier-answers.yml",
        " M app/chassis/__init__.py",
    ]
    assert git(project, "diff", "--check") == ""


@pytest.mark.long
def test_update_equals_a_new_copy(releases: Path, run_copier: RunCopier, tmp_path: Path) -> None:
    updated, new = tmp_path / "updated" / "billing", tmp_path / "new" / "billing"
    copier.run_copy(str(releases), updated, vcs_ref="0.1.0", defaults=True, quiet=True)
    commit(updated, "New project")
    assert run_copier("update", "--defaults", cwd=updated).returncode == 0
    copier.run_copy(str(releases), new, vcs_ref="0.2.0", defaults=True, quiet=True)
    # The service's own code keeps what it had.
    own = {"app/main.py", "app/settings.py", "app/api/notes.py"}
    assert files(updated).keys() == files(new).keys()
    differing = {
        name
        for name, path in files(updated).items()
        if path.read_bytes() != files(new)[name].read_bytes()
    }
    assert differing == own
