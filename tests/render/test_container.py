"""The Dockerfile, built as it is and run in both ways that it has to run."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import ROOT, Answers, tool
from test_larger_repository import WORKSPACE

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="building an image without a daemon needs root"),
]
# as Railway starts it; its health check comes with no more than this
RAILWAY = (
    "RAILWAY_ENVIRONMENT_ID=e1",
    "RAILWAY_VOLUME_MOUNT_PATH=/data",
    "SECRET_KEY=b7ad4f8e0c1d4e2f9a3b5c6d7e8f9012",
)
PRIVATE = {".env", ".env.production", "copy.db", "copy.db-wal", "app.db.replaced-2026"}
DEVELOPMENT: Answers = {"backup": "litestream", "volume_path": "/mnt/vol-1", "workers": 4}
CASES = [
    pytest.param({"volume_path": "/data"}, RAILWAY, "u=rwX,g=rX,o=", id="railway"),
    pytest.param(DEVELOPMENT, (), "u=rwX,go=", id="nothing-but-port"),
]


def lab(project: Path, *arguments: str, directory: str = ".") -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts" / "container-lab", project, *arguments]
    variables = os.environ | {"SERVICE_DIRECTORY": directory}
    return subprocess.run(
        command, env=variables, capture_output=True, encoding="utf-8", timeout=900
    )


@pytest.fixture
def context(render: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A project as it is committed: with a lock, without anything that was installed."""

    def make(**answers: str | int) -> Path:
        project = tmp_path / "context"
        subprocess.run(["cp", "-a", render(**answers), project], check=True)
        for name in PRIVATE:
            (project / name).write_text("not for the image\n", encoding="utf-8")
        return project

    return make


@pytest.mark.parametrize(("answers", "variables", "modes"), CASES)
def test_the_image_runs_with_and_without_root(
    context: Callable[..., Path], answers: Answers, variables: tuple[str, ...], modes: str
) -> None:
    project = context(**answers)
    subprocess.run([tool("uv"), "lock", "--quiet"], cwd=project, check=True)
    # as a checkout is with the umask 027 or 077: COPY keeps the modes
    subprocess.run(["chmod", "-R", modes, project], check=True)

    done = lab(project, str(answers["volume_path"]), *variables)

    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    (contained,) = (line.split() for line in lines if line.startswith("contains: "))
    assert {"app", "migrations", ".venv", "pyproject.toml"} <= set(contained)
    assert not PRIVATE & set(contained)
    # no library of a megabyte has symbols, and next to nothing is compiled when it starts
    assert "with symbols: " in lines
    (compiled,) = (line.split()[1] for line in lines if line.startswith("compiled: "))
    assert int(compiled) < 20
    assert "unprivileged: uid 10002" in lines
    assert "unprivileged: database of uid 10002" in lines
    assert "root-owned: uid 10001" in lines
    assert "root-owned: database of uid 10001" in lines
    checked = [line for line in lines if ": check: " in line]
    assert sum("check: ok       volume.mounted" in line for line in checked) == 2
    assert sum("check: ok       sqlite.version" in line for line in checked) == 2
    assert sum(", 0 failed, " in line for line in checked) == 2, checked
    assert {"unprivileged: exit 0", "root-owned: exit 0", "refused: exit 1"} <= set(lines)
    (refusal,) = (line for line in lines if line.startswith("refused: Storage: "))
    assert f"cannot write to {answers['volume_path']} as uid 10002" in refusal
    assert "RAILWAY_RUN_UID=0" in refusal


def test_a_member_of_a_uv_workspace_is_built_at_its_root(
    render: Callable[..., Path], tmp_path: Path
) -> None:
    shop, directory = tmp_path / "shop", "services/billing"
    for name in ("billing", "orders"):
        shutil.copytree(render(project_name=name), shop / "services" / name)
    shutil.copy2(shop / directory / ".dockerignore", shop)
    (shop / "pyproject.toml").write_text(WORKSPACE, encoding="utf-8")
    subprocess.run([tool("uv"), "lock", "--quiet"], cwd=shop, check=True)

    done = lab(shop, "/data", *RAILWAY, directory=directory)

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert {"unprivileged: exit 0", "root-owned: exit 0", "refused: exit 1"} <= set(lines)
    (contained,) = (line.split() for line in lines if line.startswith("contains: "))
    assert {"app", "migrations", ".venv", "pyproject.toml"} <= set(contained)


def test_a_missing_lock_is_one_clear_line(context: Callable[..., Path]) -> None:
    done = lab(context(), "/data")

    assert done.returncode != 0
    assert "uv.lock is missing: run 'uv sync'" in done.stdout + done.stderr
