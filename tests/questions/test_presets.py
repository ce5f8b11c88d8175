"""Every preset is a data file that gives a sound project."""

import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from support import (
    ASKED,
    ONLY_WITH,
    ROOT,
    SEVERAL,
    applies,
    labels,
    lint,
    load_yaml,
    parse_everything,
    recorded,
)

README = (ROOT / "README.md").read_text(encoding="utf-8")
PRESETS = sorted((ROOT / "presets").iterdir())


def preset(path: Path) -> dict[str, Any]:
    return load_yaml(path)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_every_key_is_a_question_that_is_asked(path: Path) -> None:
    answers = preset(path)
    assert answers
    assert answers.keys() <= ASKED.keys()
    assert all(applies(name, answers) for name in answers)
    features = {name for name, (other, _) in ONLY_WITH.items() if other == "features"}
    assert {name for name in features if applies(name, answers)} <= answers.keys()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_the_readme_tells_of_it_and_its_command_renders_it(
    path: Path,
    template: Path,
    tmp_path: Path,
    run_copier: Callable[..., CompletedProcess[str]],
) -> None:
    file = path.relative_to(ROOT).as_posix()
    assert f"[{file}]({file})" in README
    [command] = [line for line in README.splitlines() if f"--data-file {file} " in line]
    *arguments, source, folder = shlex.split(command.removeprefix("uvx copier "))
    # an absolute source: `.` would lead nowhere from the project
    assert (source, folder) == ("$PWD", "../my-service")

    project = tmp_path / "my-service"
    done = run_copier(*arguments, template, project, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert preset(path).items() <= recorded(project).items()
    parse_everything(project)
    lint(project)


def test_everything_is_everything() -> None:
    answers = preset(ROOT / "presets" / "everything.yml")
    assert {name: answers[name] for name in SEVERAL} == {
        name: list(labels(name).values()) for name in SEVERAL
    }
    assert (answers["profile"], answers["ai_provider"]) == ("production", "anthropic")
