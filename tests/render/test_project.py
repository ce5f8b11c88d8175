"""A fresh project passes its own checks, whatever was answered."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import Answers, identify, tool

EVERYTHING: Answers = {
    "backup": "litestream",
    "features": ["conversations", "oauth"],
    "ai_provider": "anthropic",
    "oauth_providers": ["google", "microsoft"],
}

ON_POSTGRESQL: Answers = {"database": "postgresql", "features": ["conversations", "oauth"]}

# every builder, backup, worker count and Python between them, and each feature alone
COVERING: list[Answers] = [
    {"backup": "railway", "builder": "dockerfile", "workers": 1},
    EVERYTHING,
    {"features": ["conversations"]},
    {"features": ["oauth"], "oauth_providers": ["microsoft"]},
    {"backup": "litestream", "builder": "railpack", "workers": 4, "volume_path": "/mnt/vol-1"},
    {"backup": "none", "builder": "nixpacks", "python_version": "3.11", "ci": "none"},
    ON_POSTGRESQL,
]
LONG = [pytest.param(answers, marks=pytest.mark.long) for answers in COVERING[1:]]


def run(project: Path, *command: str) -> str:
    done = subprocess.run(
        [tool("uv"), "run", "--locked", *command],
        cwd=project,
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("answers", [COVERING[0], *LONG], ids=identify)
def test_its_own_checks_pass(
    installed: Callable[..., Path], answers: Answers, tmp_path: Path
) -> None:
    project = installed(**answers)

    run(project, "ruff", "check")
    run(project, "ruff", "format", "--check")
    run(project, "mypy")
    # as a person has it who followed the README
    (project / ".env").write_bytes((project / ".env.example").read_bytes())
    assert " passed" in run(project, "pytest", "--quiet", f"--basetemp={tmp_path}/tests")
    (project / ".env").unlink()


@pytest.mark.long
def test_a_migration_can_be_written_and_needs_no_correction(
    installed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = installed(backup="railway", builder="dockerfile", workers=1)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    models = project / "app" / "models.py"
    before = models.read_text(encoding="utf-8")
    versions = project / "migrations" / "versions"
    known = set(versions.iterdir())
    column = "    done: Mapped[bool] = mapped_column(default=False, server_default='0')\n"
    try:
        run(project, "python", "-m", "app", "migrate")
        models.write_text(before + column, encoding="utf-8")
        run(project, "alembic", "revision", "--autogenerate", "-m", "add done")
        run(project, "ruff", "check", "migrations")
        run(project, "ruff", "format", "--check", "migrations")
        run(project, "mypy")
        run(project, "python", "-m", "app", "migrate")
        run(project, "alembic", "check")
    finally:
        models.write_text(before, encoding="utf-8")
        for new in set(versions.glob("*.py")) - known:
            new.unlink()


def test_without_its_dependencies_it_says_what_to_do(
    render: Callable[..., Path], tmp_path: Path
) -> None:
    """What a build without uv.lock comes to: Railpack installs nothing then."""
    project = render()
    bare = tmp_path / "bare"
    subprocess.run([tool("uv"), "venv", "--quiet", bare], check=True)

    done = subprocess.run(
        [bare / "bin" / "python", "-m", "app"], cwd=project, capture_output=True, encoding="utf-8"
    )

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "uv sync" in done.stderr
