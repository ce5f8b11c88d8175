"""The questions as people meet them: on a terminal of 80 columns and 40 lines."""

import os
import sys
from pathlib import Path
from typing import Any

import copier
import pytest

from support import ASKED, TYPED, labels, recorded
from terminal import CLEAR_LINE, DOWN, ENTER, INTERRUPT, Terminal


def copying(template: Path, folder: Path) -> Terminal:
    command = [sys.executable, "-m", "copier", "copy", str(template), folder.name]
    return Terminal(command, cwd=folder.parent, env=os.environ)


def question(terminal: Terminal, name: str) -> str:
    """The screen with the whole question on it."""
    return terminal.wait_for(*ASKED[name]["help"].splitlines(), *labels(name))


def pass_over(terminal: Terminal, *names: str) -> None:
    for name in names:
        question(terminal, name)
        terminal.press(ENTER)


def correct(terminal: Terminal, bad: str, message: str, good: str) -> None:
    terminal.press(CLEAR_LINE, bad, ENTER)
    terminal.wait_for(message)
    assert len(message) <= 35
    terminal.press(CLEAR_LINE, good, ENTER)


def test_enter_takes_the_defaults(template: Path, tmp_path: Path) -> None:
    worker = copier.run_copy(
        str(template), tmp_path / "billing", defaults=True, quiet=True, pretend=True
    )
    defaults: dict[str, Any] = {name: worker.answers.combined[name] for name in ASKED}

    with copying(template, tmp_path / "billing") as terminal:
        for name in ASKED:
            question(terminal, name)
            if name in TYPED:
                terminal.wait_for(f"   {defaults[name]}")
            else:
                chosen = [label for label, value in labels(name).items() if value == defaults[name]]
                screen = terminal.wait_for(f" » {chosen[0]}")
                assert "(recommended" in chosen[0]
                assert screen.count("»") == 1
            terminal.press(ENTER)
        assert terminal.wait_for_end() == 0

    assert defaults.items() <= recorded(tmp_path / "billing").items()


def test_mistakes_are_corrected(template: Path, tmp_path: Path) -> None:
    with copying(template, tmp_path / "billing") as terminal:
        question(terminal, "project_name")
        correct(terminal, "___", "Needs a letter or digit", "Billing API")
        pass_over(terminal, "project_description")
        question(terminal, "profile")
        terminal.press(DOWN)
        terminal.wait_for(" » Production")
        terminal.press(ENTER)
        question(terminal, "volume_path")
        correct(terminal, "data", "Must start with /, such as /data", "/mnt/vol-1")
        question(terminal, "workers")
        correct(terminal, "99", "Must be a number from 1 to 16", "4")
        question(terminal, "backup")
        terminal.wait_for(" » Litestream")
        terminal.press(ENTER)
        question(terminal, "builder")
        terminal.press(DOWN, DOWN)
        terminal.wait_for(" » Nixpacks")
        terminal.press(ENTER)
        question(terminal, "python_version")
        terminal.wait_for("- 3.14: newest (Nixpacks has no Python 3.14)")
        terminal.press(DOWN)
        terminal.wait_for(" » 3.12")
        terminal.press(ENTER)
        pass_over(terminal, "ci")
        assert terminal.wait_for_end() == 0

    answers = recorded(tmp_path / "billing")
    assert {name: answers[name] for name in ASKED if name != "project_description"} == {
        "project_name": "Billing API",
        "profile": "production",
        "volume_path": "/mnt/vol-1",
        "workers": 4,
        "backup": "litestream",
        "builder": "nixpacks",
        "python_version": "3.12",
        "ci": "github",
    }


@pytest.mark.parametrize("name", ["project_name", "backup"])
def test_interrupt_leaves_nothing(name: str, template: Path, tmp_path: Path) -> None:
    with copying(template, tmp_path / "billing") as terminal:
        names = list(ASKED)
        pass_over(terminal, *names[: names.index(name)])
        question(terminal, name)
        terminal.press(INTERRUPT)
        assert terminal.wait_for_end() == 1
        assert "Execution stopped by user" in terminal.text
        assert "Traceback" not in terminal.text
    assert list(tmp_path.iterdir()) == []
