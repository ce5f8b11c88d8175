"""The questions as people meet them: on a terminal of 80 columns and 40 lines."""

import os
import sys
from pathlib import Path
from typing import Any

import copier
import pytest

from support import ASKED, SEVERAL, TYPED, applies, commit, labels, mostly_long, recorded
from support.terminal import CLEAR_LINE, DOWN, ENTER, INTERRUPT, SPACE, Terminal


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


def marks(name: str, *marked: str) -> list[str]:
    """The choices of a question with their marks, as they stand on the screen."""
    return [f"{'●' if value in marked else '○'} {label}" for label, value in labels(name).items()]


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
            if not applies(name, defaults):
                continue
            question(terminal, name)
            if name in TYPED:
                terminal.wait_for(f"   {defaults[name]}")
            elif name in SEVERAL:
                terminal.wait_for(*marks(name, *defaults[name]))
            else:
                chosen = [label for label, value in labels(name).items() if value == defaults[name]]
                screen = terminal.wait_for(f" » {chosen[0]}")
                assert "(recommended" in chosen[0]
                assert screen.count("»") == 1
            terminal.press(ENTER)
        assert terminal.wait_for_end() == 0

    answers = recorded(tmp_path / "billing")
    del answers["_commit"], answers["_src_path"]
    assert answers == {name: defaults[name] for name in ASKED if applies(name, defaults)}


def test_mistakes_are_corrected(template: Path, tmp_path: Path) -> None:
    with copying(template, tmp_path / "billing") as terminal:
        question(terminal, "project_name")
        correct(terminal, "___", "Needs a letter or digit", "Billing API")
        pass_over(terminal, "database", "project_description")
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
        pass_over(terminal, "features")
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
    del answers["_commit"], answers["_src_path"], answers["project_description"]
    assert answers == {
        "project_name": "Billing API",
        "database": "sqlite",
        "profile": "production",
        "volume_path": "/mnt/vol-1",
        "workers": 4,
        "backup": "litestream",
        "features": [],
        "builder": "nixpacks",
        "python_version": "3.12",
        "ci": "github",
    }


def test_postgresql_asks_other_questions(template: Path, tmp_path: Path) -> None:
    with copying(template, tmp_path / "billing") as terminal:
        pass_over(terminal, "project_name")
        question(terminal, "database")
        terminal.press(DOWN)
        terminal.wait_for(" » PostgreSQL")
        terminal.press(ENTER)
        question(terminal, "project_description")
        terminal.wait_for("with its data in PostgreSQL")
        terminal.press(ENTER)
        pass_over(terminal, "profile", "workers")
        question(terminal, "replicas")
        correct(terminal, "0", "Must be a number from 1 to 16", "3")
        question_with_refused(terminal)
        terminal.press(ENTER)
        pass_over(terminal, "features", "builder", "python_version", "ci")
        assert terminal.wait_for_end() == 0
        assert ASKED["volume_path"]["help"].splitlines()[0] not in terminal.text

    answers = recorded(tmp_path / "billing")
    assert (answers["database"], answers["replicas"], answers["backup"]) == (
        "postgresql",
        3,
        "railway",
    )


def question_with_refused(terminal: Terminal) -> None:
    """The backups that PostgreSQL has not are there, and cannot be chosen."""
    screen = question(terminal, "backup")
    assert screen.count("(Only with sqlite)") == 2
    terminal.wait_for(" » Railway")


def test_features_ask_further(template: Path, tmp_path: Path) -> None:
    with copying(template, tmp_path / "billing") as terminal:
        names = [name for name in ASKED if name != "replicas"]
        pass_over(terminal, *names[: names.index("features")])
        question(terminal, "features")
        terminal.wait_for(*marks("features"))
        terminal.press(SPACE, DOWN, SPACE)
        terminal.wait_for(*marks("features", "conversations", "oauth"))
        terminal.press(ENTER)

        question(terminal, "ai_provider")
        terminal.wait_for(" » Echo")
        terminal.press(DOWN)
        terminal.wait_for(" » Anthropic")
        terminal.press(ENTER)

        question(terminal, "oauth_providers")
        terminal.wait_for(*marks("oauth_providers", "google"))
        terminal.press(SPACE)
        terminal.wait_for(*marks("oauth_providers"))
        terminal.press(ENTER)
        screen = terminal.wait_for(
            "Validation error for question 'oauth_providers': Choose at least one"
        )
        assert all(line in screen for line in ASKED["oauth_providers"]["help"].splitlines())
        terminal.press(DOWN, SPACE)
        terminal.wait_for(*marks("oauth_providers", "microsoft"))
        terminal.press(ENTER)
        pass_over(terminal, "builder", "python_version", "ci")
        assert terminal.wait_for_end() == 0

    answers = recorded(tmp_path / "billing")
    assert answers["features"] == ["conversations", "oauth"]
    assert answers["ai_provider"] == "anthropic"
    assert answers["oauth_providers"] == ["microsoft"]


@pytest.mark.long
def test_one_feature_asks_its_own_question_only(template: Path, tmp_path: Path) -> None:
    with copying(template, tmp_path / "billing") as terminal:
        names = [name for name in ASKED if name != "replicas"]
        pass_over(terminal, *names[: names.index("features")])
        question(terminal, "features")
        terminal.press(DOWN, SPACE)
        terminal.wait_for(*marks("features", "oauth"))
        terminal.press(ENTER)
        pass_over(terminal, "oauth_providers", "builder", "python_version", "ci")
        assert terminal.wait_for_end() == 0
        assert ASKED["ai_provider"]["help"].splitlines()[0] not in terminal.text

    answers = recorded(tmp_path / "billing")
    assert (answers["features"], answers["oauth_providers"]) == (["oauth"], ["google"])
    assert "ai_provider" not in answers


@pytest.mark.long
def test_an_update_shows_the_answers_of_before(releases: Path, tmp_path: Path) -> None:
    """And a feature that is unmarked there takes its further answers with it."""
    project = tmp_path / "billing"
    before = {"features": ["oauth"], "oauth_providers": ["microsoft"]}
    copier.run_copy(str(releases), project, data=before, vcs_ref="0.1.0", defaults=True, quiet=True)
    commit(project, "New project")

    command = [sys.executable, "-m", "copier", "update"]
    with Terminal(command, cwd=project, env=os.environ) as terminal:
        names = [name for name in ASKED if name != "replicas"]
        pass_over(terminal, *names[: names.index("features")])
        question(terminal, "features")
        terminal.wait_for(*marks("features", "oauth"))
        terminal.press(SPACE, DOWN, SPACE)
        terminal.wait_for(*marks("features", "conversations"))
        terminal.press(ENTER)
        pass_over(terminal, "ai_provider", "builder", "python_version", "ci")
        assert terminal.wait_for_end() == 0

    answers = recorded(project)
    assert (answers["features"], answers["ai_provider"]) == (["conversations"], "echo")
    assert "oauth_providers" not in answers


@pytest.mark.parametrize("name", mostly_long(["backup", "project_name", "features"]))
def test_interrupt_leaves_nothing(name: str, template: Path, tmp_path: Path) -> None:
    with copying(template, tmp_path / "billing") as terminal:
        names = [name for name in ASKED if name != "replicas"]
        pass_over(terminal, *names[: names.index(name)])
        question(terminal, name)
        terminal.press(INTERRUPT)
        assert terminal.wait_for_end() == 1
        assert "Execution stopped by user" in terminal.text
        assert "Traceback" not in terminal.text
    assert list(tmp_path.iterdir()) == []
