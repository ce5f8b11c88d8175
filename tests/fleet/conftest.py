"""Services in repositories of their own, and the command as people run it."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Run

from support import ROOT, commit, git

ANSWERS = """\
_commit: {version}
_src_path: {source}
backup: {backup}
features: {features}
python_version: '3.13'
workers: {workers}
"""


@pytest.fixture(scope="session")
def run_fleet(isolation: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    cache = tmp_path_factory.mktemp("cache")

    def run(
        *arguments: str | Path, cwd: Path | None = None, **variables: str | None
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TRACKBED_FLEET_CACHE": str(cache),
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-m", "trackbed.cli", "fleet", *map(str, arguments)],
            cwd=cwd or cache,
            env={name: value for name, value in environment.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=400,
        )

    return run


@pytest.fixture
def fabricate(tmp_path: Path) -> Callable[..., Path]:
    """A service that is nothing but its answers."""

    def make(
        name: str,
        version: str = "0.1.0",
        source: str = "gh:acme/trackbed",
        backup: str = "railway",
        features: str = "[]",
        workers: str = "1",
    ) -> Path:
        service = tmp_path / "services" / name
        (service / ".git").mkdir(parents=True)
        text = ANSWERS.format(
            version=version, source=source, backup=backup, features=features, workers=workers
        )
        (service / ".copier-answers.yml").write_text(text, encoding="utf-8")
        return service

    return make


RELEASES_TOML = """\
[[release]]
version = "0.1.0"
commit = "1111111111111111111111111111111111111111"
date = 2026-01-01

[[release]]
version = "0.2.0"
commit = "2222222222222222222222222222222222222222"
date = 2026-02-01
"""


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    """A template with its releases, that services record by another address."""
    directory = tmp_path / "trackbed"
    directory.mkdir()
    (directory / "copier.yml").write_text("backup: none\n")
    (directory / "releases.toml").write_text(RELEASES_TOML)
    commit(directory, "Template")
    git(directory, "remote", "add", "origin", "git@github.com:acme/trackbed.git")
    return directory


SMALL = {
    "copier.yml": "_subdirectory: template\nbackup:\n  type: str\n  default: railway\n",
    "ownership.toml": '[[template]]\npaths = ["app/chassis/"]\n',
    "template/{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml -}}\n",
    "template/.gitignore": ".env\n",
    "template/README.md.jinja": "# Service\n\nBackup: {{ backup }}\n\n## End\n",
    "template/app/chassis/__init__.py": '"""The chassis."""\n',
    "template/app/chassis/worker.py": "WORKER = 1\n",
    "template/app/main.py": "app = None\n",
    "template/app/settings.py": "debug = False\n",
}


@pytest.fixture(scope="session")
def small(isolation: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template of a few files, 0.1.0 and 0.2.0: for what any template shows, and sooner."""
    repository = tmp_path_factory.mktemp("small") / "template"
    for name, text in SMALL.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text, encoding="utf-8")
    commit(repository, "First release", tag="0.1.0")
    for name in ("app/chassis/__init__.py", "app/main.py"):
        with (repository / "template" / name).open("a", encoding="utf-8") as file:
            file.write("# new in 0.2.0\n")
    commit(repository, "Second release", tag="0.2.0")
    return repository


@pytest.fixture(scope="session")
def render_first(
    run_copier: Run, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Path]:
    """A service made from a template's 0.1.0, in git. Copy it."""
    services: dict[Path, Path] = {}

    def render(template: Path) -> Path:
        if template not in services:
            service = tmp_path_factory.mktemp("rendered") / "service"
            options = ("--quiet", "--defaults", "--vcs-ref", "0.1.0")
            done = run_copier("copy", *options, template, service)
            assert done.returncode == 0, done.stderr
            commit(service, "As rendered")
            services[template] = service
        return services[template]

    return render


@pytest.fixture
def make_service(
    render_first: Callable[[Path], Path], small: Path, tmp_path: Path
) -> Callable[..., Path]:
    """A service with edits of its own, committed: additions to files, or whole ones."""

    def make(
        name: str,
        edits: dict[str, str] | None = None,
        *,
        additions: dict[str, str] | None = None,
        template: Path = small,
    ) -> Path:
        service = tmp_path / "services" / name
        shutil.copytree(render_first(template), service, symlinks=True)
        for file, text in (edits or {}).items():
            (service / file).parent.mkdir(parents=True, exist_ok=True)
            (service / file).write_text(text, encoding="utf-8")
        for file, text in (additions or {}).items():
            with (service / file).open("a", encoding="utf-8") as appended:
                appended.write(text)
        if edits or additions:
            git(service, "add", "--all")
            git(service, "commit", "--quiet", "--message", "Edits")
        return service

    return make


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[Path], dict[str, str]]:
    """Every file of a repository, git's own and untracked ones too, with its content and mode."""

    def take(repository: Path) -> dict[str, str]:
        found = {}
        for path in sorted(repository.rglob("*")):
            if path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                name = path.relative_to(repository).as_posix()
                found[name] = f"{path.stat().st_mode:o} {digest}"
        return found

    return take
