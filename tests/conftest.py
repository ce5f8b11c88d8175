"""The template as it stands in the working tree, and ways to render it."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import plumbum
import pytest
from pytest_copie.plugin import Copie

from support import ASKED, ROOT, Answers, command, commit, git, tool
from trackbed.internals import Worker
from trackbed.render import compile_once

# run in projects, by render/test_chassis.py
collect_ignore = ["chassis"]

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


@pytest.fixture
def record_property(
    record_property: Callable[[str, object], None],
) -> Callable[[str, object], None]:
    """Record figures as texts, because a Counter ends the whole run of pytest-xdist."""

    def record(name: str, value: object) -> None:
        record_property(name, str(value))

    return record


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
        # it goes by content, and projects differ in little
        "MYPY_CACHE_DIR": str(home / "mypy"),
        "PYTHONUTF8": "1",
    }
    # A git hook that runs the tests sets the first three. With the last one every start of a
    # service would compile each module again.
    unwanted = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "PYTHONDONTWRITEBYTECODE")
    with pytest.MonkeyPatch.context() as patch:
        # hundreds of renders here have the same templates
        patch.setattr(jinja2.Environment, "compile", compile_once)
        # asks git for each file whether modes count, which here they do
        patch.setattr(Worker, "_sync_git_index_executable_bit", lambda *_: None)
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
def once(isolation: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a directory once for all processes of a test run, and return it. It is read only."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], None]) -> Path:
        directory = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.exists():
                unfinished = shared / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                make(unfinished)
                unfinished.rename(directory)
        return directory

    return once


@pytest.fixture(scope="session")
def snapshot(once: Callable[..., Path]) -> Path:
    """A plain directory with the files of the working tree, committed or not."""

    def make(directory: Path) -> None:
        listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in listed.rstrip("\0").split("\0"):
            if not (ROOT / name).is_file():
                continue  # deleted and not yet committed
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name, follow_symlinks=False)

    return once("snapshot", make)


@pytest.fixture(scope="session")
def template(snapshot: Path, once: Callable[..., Path]) -> Path:
    """A repository of the template with one release, 0.1.0."""

    def make(repository: Path) -> None:
        shutil.copytree(snapshot, repository, symlinks=True)
        commit(repository, "First release", tag="0.1.0")

    return once("template", make)


@pytest.fixture(scope="session")
def releases(template: Path, once: Callable[..., Path]) -> Path:
    """A repository of the template with two releases: 0.2.0 adds a last line to some files."""

    def make(repository: Path) -> None:
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

    return once("releases", make)


@pytest.fixture(scope="session")
def render(copie_session: Copie, template: Path, once: Callable[..., Path]) -> Callable[..., Path]:
    """The project for some answers, rendered once: read it, and leave it as it is."""

    def render(**answers: str | int | list[str]) -> Path:
        assert answers.keys() <= ASKED.keys(), "no such question"
        complete: Answers = {"project_name": "Billing API", **answers}

        def make(directory: Path) -> None:
            result = copie_session.copy(complete, template_dir=template)
            assert result.exception is None, result.exception
            assert result.project_dir is not None
            result.project_dir.rename(directory)

        key = hashlib.sha256(repr(sorted(complete.items())).encode()).hexdigest()[:16]
        return once(f"project-{key}", make)

    return render


@pytest.fixture(scope="session")
def run_copier(isolation: None) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The copier command as people run it, without a terminal."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return command.run_copier([*map(str, arguments)], cwd)

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
            for other in projects.values():
                link_bytecode(other, project)
            # compiles it, which copies of the project would do again each
            command = [str(project / ".venv" / "bin" / "python"), "-c", "import pytest, app.main"]
            subprocess.run(command, cwd=project, check=True, timeout=600)
            projects[rendered] = project
        return projects[rendered]

    return install


def link_bytecode(source: Path, project: Path) -> None:
    """Spare a project the compilation of packages that another one has compiled.

    Python itself compares a module with what its bytecode was made from.
    """
    for compiled in source.glob(".venv/lib/*/site-packages/**/*.pyc"):
        target = project / compiled.relative_to(source)
        if target.parents[1].is_dir() and not target.exists():
            target.parent.mkdir(exist_ok=True)
            target.hardlink_to(compiled)
