"""The template as it stands in the working tree, and ways to render it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import plumbum
import pytest
from pytest_copie.plugin import Copie

from support import ASKED, ROOT, Answers, commit, git, tool

GIT_CONFIG = """\
[init]
    defaultBranch = main
[safe]
    directory = *
"""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have measured: their `record_property` calls, one a line."""
    figures = [
        (report.nodeid, name, value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
    ]
    if figures:
        terminalreporter.section("figures")
    for nodeid, name, value in figures:
        terminalreporter.line(f"{nodeid}: {name}: {value}")


@pytest.fixture(scope="session", autouse=True)
def isolation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The developer's own settings of Copier and git stay out of the tests."""
    home = tmp_path_factory.mktemp("home")
    (home / "settings.yml").write_text("{}\n")
    (home / "gitconfig").write_text(GIT_CONFIG)
    variables = {
        "COPIER_SETTINGS_PATH": str(home / "settings.yml"),
        "GIT_AUTHOR_EMAIL": "tests@example.com",
        "GIT_AUTHOR_NAME": "Tests",
        "GIT_COMMITTER_EMAIL": "tests@example.com",
        "GIT_COMMITTER_NAME": "Tests",
        "GIT_CONFIG_GLOBAL": str(home / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "PYTHONUTF8": "1",
    }
    # A git hook that runs the tests sets these.
    unwanted = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
    with pytest.MonkeyPatch.context() as patch:
        for name in unwanted:
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        # Copier runs git through plumbum, which has read the environment before.
        with plumbum.local.env(**variables):
            for name in unwanted:
                plumbum.local.env.pop(name, None)
            yield


@pytest.fixture(scope="session")
def snapshot(isolation: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain directory with the files of the working tree, committed or not."""
    directory = tmp_path_factory.mktemp("template") / "snapshot"
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.rstrip("\0").split("\0"):
        if not (ROOT / name).is_file():
            continue  # deleted and not yet committed
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, directory / name, follow_symlinks=False)
    return directory


@pytest.fixture(scope="session")
def template(snapshot: Path) -> Path:
    """A repository of the template with one release, 0.1.0."""
    repository = snapshot.with_name("repository")
    shutil.copytree(snapshot, repository, symlinks=True)
    commit(repository, "First release", tag="0.1.0")
    return repository


@pytest.fixture(scope="session")
def releases(template: Path) -> Path:
    """A repository of the template with two releases: 0.2.0 adds a last line to some files."""
    repository = template.with_name("releases")
    git(template.parent, "clone", "--quiet", str(template), str(repository))
    for name in (
        "app/chassis/__init__.py",
        "app/main.py",
        "app/settings.py",
        "app/api/notes.py",
    ):
        with (repository / "template" / name).open("a", encoding="utf-8") as file:
            file.write("# new in 0.2.0\n")
    commit(repository, "Second release", tag="0.2.0")
    return repository


@pytest.fixture(scope="session")
def render(copie_session: Copie, template: Path) -> Callable[..., Path]:
    """The project for some answers, rendered once: read it, and leave it as it is."""
    projects: dict[str, Path] = {}

    def render(**answers: str | int | list[str]) -> Path:
        assert answers.keys() <= ASKED.keys(), "no such question"
        complete: Answers = {"project_name": "Billing API", **answers}
        key = repr(sorted(complete.items()))
        if key not in projects:
            result = copie_session.copy(complete, template_dir=template)
            assert result.exception is None, result.exception
            assert result.project_dir is not None
            projects[key] = result.project_dir
        return projects[key]

    return render


@pytest.fixture(scope="session")
def run_copier(isolation: None) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The copier command as people run it, without a terminal."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "copier", *map(str, arguments)],
            cwd=cwd,
            env=os.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def installed(
    render: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A copy of the rendered project with its lock and environment: put back what you change."""
    projects: dict[Path, Path] = {}

    def install(**answers: str | int | list[str]) -> Path:
        rendered = render(**answers)
        if rendered not in projects:
            project = tmp_path_factory.mktemp("installed") / "project"
            shutil.copytree(rendered, project)
            command = [tool("uv"), "sync", "--quiet"]
            subprocess.run(command, cwd=project, check=True, timeout=600)
            projects[rendered] = project
        return projects[rendered]

    return install
