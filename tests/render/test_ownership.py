"""ownership.toml, and what has to agree with it."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from support import QUESTIONS, ROOT, SETTINGS, Answers, files, rendered_name, tool
from support.ownership import (
    ANCHORS,
    ANSWERS_FILE,
    SHARED,
    TEMPLATE,
    USER,
    below_anchor,
    covers,
    owners,
)
from trackbed.internals import Worker

Render = Callable[..., Path]

# together these render every file
EVERYTHING: Answers = {
    "backup": "litestream",
    "features": ["conversations", "oauth"],
    "ai_provider": "anthropic",
    "oauth_providers": ["google", "microsoft"],
}
RENDERS: list[Answers] = [
    {},
    EVERYTHING,
    {"builder": "railpack", "python_version": "3.14", "volume_path": "/mnt/vol-1", "workers": 4},
    {"builder": "nixpacks", "backup": "none", "features": ["conversations"]},
    {"features": ["oauth"], "backup": "litestream", "python_version": "3.12", "workers": 4},
    {"database": "postgresql", "features": ["conversations", "oauth"], "replicas": 3},
    {"ci": "none", "features": ["oauth"], "oauth_providers": ["microsoft"], "volume_path": "/d"},
]

# a second place for additions in one of the files
LINES_TO_ADD_BELOW = [*ANCHORS.items(), ("pyproject.toml", "# your own tools: `uv add --dev NAME`")]


@pytest.fixture(scope="module")
def names(snapshot: Path) -> set[str]:
    """Every file that any answers render."""
    return {rendered_name(name) for name in files(snapshot / "template")}


@pytest.fixture(scope="module")
def projects(render: Render) -> list[Path]:
    return [render(**answers) for answers in RENDERS]


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_renders_hold_every_file(projects: list[Path], names: set[str]) -> None:
    assert set().union(*(files(project) for project in projects)) == names


def test_every_file_has_one_owner(names: set[str]) -> None:
    found = {name: owners(name) for name in names - {ANSWERS_FILE}}
    assert {name: them for name, them in found.items() if len(them) != 1} == {}


def test_every_entry_names_a_file(names: set[str]) -> None:
    entries = [*(path for part in TEMPLATE for path in part["paths"]), *SHARED, *USER]
    assert len(entries) == len(set(entries))
    assert [path for path in entries if not any(covers(path, name) for name in names)] == []


def test_copier_leaves_the_users_files_alone(snapshot: Path) -> None:
    assert SETTINGS["skip_if_exists"] == USER
    everything = {name: True for name, question in QUESTIONS.items() if "bool" in question["type"]}
    with Worker(src_path=str(snapshot)) as worker:
        excluded = {
            operation: worker._render_string(
                "\n".join(SETTINGS["exclude"]), {**everything, "_copier_operation": operation}
            ).split()
            for operation in ("copy", "update")
        }
    assert excluded["update"] == [*excluded["copy"], *USER]


@pytest.mark.parametrize("part", TEMPLATE, ids=lambda part: part["paths"][0])
def test_the_templates_files_say_so(part: dict[str, str | list[str]], projects: list[Path]) -> None:
    for project in projects:
        for name, path in files(project).items():
            said = [line for line in text(path).splitlines()[:3] if part["header"] in line]
            belongs = any(covers(entry, name) for entry in part["paths"])
            assert len(said) == belongs, name
            assert belongs or part["header"] not in text(path), name


def test_pull_requests_collapse_the_templates_files(projects: list[Path]) -> None:
    paths = [path for part in TEMPLATE for path in part["paths"]]
    for project in projects:
        said = re.findall(r"^(\S+) linguist-generated$", text(project / ".gitattributes"), re.M)
        there = [path for path in paths if (project / path).exists()]
        assert sorted(said) == sorted(f"{path}**" if path[-1] == "/" else path for path in there)


@pytest.mark.parametrize(("name", "anchor"), LINES_TO_ADD_BELOW, ids=lambda value: value[:20])
def test_an_anchor_is_there_once(name: str, anchor: str, projects: list[Path]) -> None:
    found = [text(project / name) for project in projects if (project / name).exists()]
    assert found
    for content in found:
        assert content.count(f"{anchor}\n") == 1
    # what follows is the same with all answers: an addition stands between two lines that stay
    assert len({content.split(f"{anchor}\n")[1].partition("\n")[0] for content in found}) == 1


@pytest.mark.parametrize(("name", "anchor"), LINES_TO_ADD_BELOW, ids=lambda value: value[:20])
def test_an_addition_at_the_anchor_never_conflicts(
    name: str, anchor: str, projects: list[Path], tmp_path: Path
) -> None:
    """Between any two sets of answers, which differ more than two releases do."""
    having = [project for project in projects if (project / name).exists()]
    for old, new in permutations(having, 2):
        for side, project in (("mine", old), ("old", old), ("new", new), ("goal", new)):
            (tmp_path / side / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / name, tmp_path / side / name)
        for side in ("mine", "goal"):
            below_anchor(tmp_path / side, name, "one of mine\nanother of mine\n", {name: anchor})
        sides = [tmp_path / side / name for side in ("mine", "old", "new")]
        merged = subprocess.run(
            ["git", "merge-file", "-p", *sides], capture_output=True, encoding="utf-8"
        )
        assert (merged.returncode, merged.stdout) == (0, text(tmp_path / "goal" / name))


@pytest.mark.parametrize("name", SHARED)
def test_no_place_in_a_shared_file_looks_like_another(name: str, projects: list[Path]) -> None:
    """A change is put where the three lines around it are: they must not be elsewhere as well."""
    found = [text(project / name) for project in projects if (project / name).exists()]
    assert found
    for content in found:
        lines = content.splitlines()
        places = Counter(tuple(lines[start : start + 6]) for start in range(len(lines) - 5))
        assert [place for place, times in places.items() if times > 1] == []


@pytest.mark.parametrize("answers", [{}, EVERYTHING], ids=["least", "most"])
def test_uv_adds_below_the_anchors(answers: Answers, render: Render, tmp_path: Path) -> None:
    shutil.copy(render(**answers) / "pyproject.toml", tmp_path)
    for package in ("aaa", "mmm", "zzz"):
        for option in ([], ["--dev"]):
            command = [tool("uv"), "add", "--quiet", "--frozen", *option, package]
            subprocess.run(command, cwd=tmp_path, check=True)
    content = text(tmp_path / "pyproject.toml")
    for name, anchor in LINES_TO_ADD_BELOW:
        if name == "pyproject.toml":
            assert f'{anchor}\n    "aaa",\n    "mmm",\n    "zzz",\n]\n' in content


def section(page: str, title: str) -> str:
    [found] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found


def listed(line: str) -> list[str]:
    return re.findall(r"`([^`]+)`", line)


@pytest.mark.parametrize("answers", [None, *RENDERS], ids=lambda answers: repr(answers)[:30])
def test_the_readme_and_the_runbooks_say_whose_is_what(
    answers: Answers | None, render: Render
) -> None:
    """The repository's own README (None), and the runbooks of projects."""
    project = ROOT if answers is None else render(**answers)
    page, title = ("README.md", "Updating") if answers is None else ("RUNBOOK.md", "Update")
    said = section(text(project / page), title)
    [template] = [line for line in said.splitlines() if line.startswith("| the template's |")]
    [shared] = [line for line in said.splitlines() if line.startswith("| shared |")]
    [yours] = [line for line in said.splitlines() if line.startswith("| yours |")]
    paths = [path for part in TEMPLATE for path in part["paths"]]
    if answers is not None:
        paths = [path for path in paths if (project / path).exists()]
    assert listed(template) == paths
    assert "everything else" in shared
    assert listed(yours) == USER
