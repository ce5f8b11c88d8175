"""What the tests take for the copier command is the copier command."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from support import files


@pytest.mark.parametrize("answer", ["workers=2", "workers=0"])
def test_the_child_is_the_command(
    answer: str, template: Path, tmp_path: Path, run_copier: Callable[..., CompletedProcess[str]]
) -> None:
    """It prints the same, a warning of Copier's among it, and makes the same."""
    dirty = tmp_path / "template"
    shutil.copytree(template, dirty, symlinks=True)
    (dirty / "template" / "new.txt").write_text("not committed\n")
    project = tmp_path / "project"
    arguments = ["copy", "--defaults", "--vcs-ref=HEAD", f"--data={answer}", dirty, project]

    def real(*arguments: str | Path) -> CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "copier", *map(str, arguments)],
            env=os.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        )

    outcomes = []
    for run in (real, run_copier):
        done = run(*arguments)
        made = {name: path.read_bytes() for name, path in files(project).items()}
        for name in (".copier-answers.yml", "app/chassis/answers.py"):
            made.pop(name, None)  # with the commit that Copier makes of what is not committed
        said = re.sub(r"(dev0\+)\w+", r"\1", done.stderr)
        outcomes.append((done.returncode, done.stdout, said, made))
        shutil.rmtree(project, ignore_errors=True)

    assert "DirtyLocalWarning" in outcomes[0][2]
    assert outcomes[1] == outcomes[0]
