"""The template with its history: what people have made projects from, and what comes next."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from copier import run_copy

from history import NEXT, RELEASES, tag_releases
from support import ROOT, Answers, commit, git


@pytest.fixture(scope="session")
def history(snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this repository with a tag for each release, and the working tree as the next."""
    repository = tmp_path_factory.mktemp("history") / "template"
    clone = ["clone", "--quiet", "--no-tags", "--no-checkout", str(ROOT), str(repository)]
    git(ROOT, *clone)
    tag_releases(repository, RELEASES)
    shutil.copytree(snapshot, repository, symlinks=True, dirs_exist_ok=True)
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "The working tree")
    git(repository, "tag", "--annotate", "--message", NEXT, NEXT)
    return repository


@pytest.fixture(scope="session")
def make(
    history: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Answers], Path]:
    """A project as somebody has made it from a release, in a repository of its own."""

    def make(release: str, answers: Answers) -> Path:
        project = tmp_path_factory.mktemp("made") / "project"
        data = {"project_name": "Billing API", **answers}
        # here and not in a child, which would keep what it compiles of this release to itself
        run_copy(str(history), project, data, vcs_ref=release, defaults=True, quiet=True)
        commit(project, "New project")
        return project

    return make


@pytest.fixture(scope="session")
def fresh(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Answers], Path]:
    """What the newest release renders for some answers, to change at will."""
    rendered: dict[str, Path] = {}

    def fresh(answers: Answers) -> Path:
        key = repr(sorted(answers.items()))
        if key not in rendered:
            rendered[key] = tmp_path_factory.mktemp("fresh") / "project"
            data = {"project_name": "Billing API", **answers}
            options = {"vcs_ref": NEXT, "defaults": True, "quiet": True}
            run_copy(str(history), rendered[key], data, **options)
        project = tmp_path_factory.mktemp("expected") / "project"
        shutil.copytree(rendered[key], project)
        return project

    return fresh
