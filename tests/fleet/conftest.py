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
        *arguments: str | Path, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fleet.cli", *map(str, arguments)],
            cwd=cwd or cache,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TRACKBED_FLEET_CACHE": str(cache),
                **variables,
            },
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


@pytest.fixture(scope="session")
def rendered(releases: Path, run_copier: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service made from 0.1.0, in git. Copy it."""
    service = tmp_path_factory.mktemp("rendered") / "service"
    done = run_copier("copy", "--quiet", "--defaults", "--vcs-ref", "0.1.0", releases, service)
    assert done.returncode == 0, done.stderr
    commit(service, "As rendered")
    return service


@pytest.fixture
def make_service(rendered: Path, tmp_path: Path) -> Callable[..., Path]:
    """A service with some files of its own, committed."""

    def make(name: str, edits: dict[str, str] | None = None) -> Path:
        service = tmp_path / "services" / name
        shutil.copytree(rendered, service, symlinks=True)
        for file, text in (edits or {}).items():
            (service / file).parent.mkdir(parents=True, exist_ok=True)
            (service / file).write_text(text, encoding="utf-8")
        if edits:
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
