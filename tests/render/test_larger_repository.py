"""Services in one repository, and in one uv workspace: what is printed, checked and locked."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import commit, git, mostly_long, tool
from test_messages import RunCopier, printed

WORKSPACE = """\
[project]
name = "shop"
version = "1"
requires-python = ">=3.11"

[tool.uv]
package = false

[tool.uv.workspace]
members = ["services/*"]
"""


@pytest.mark.parametrize("folder", mostly_long(["it's [new]*/a service", "services/billing"]))
@pytest.mark.parametrize(
    "worktree", [False, pytest.param(True, marks=pytest.mark.long)], ids=["clone", "worktree"]
)
def test_inside_a_repository_no_other_is_begun(
    run_copier: RunCopier, template: Path, tmp_path: Path, folder: str, worktree: bool
) -> None:
    repository = tmp_path / "shop"
    repository.mkdir()
    (repository / "LICENSE").touch()
    commit(repository, "A shop")
    if worktree:
        git(repository, "worktree", "add", "--quiet", "-b", "second", str(tmp_path / "shop [2]"))
        repository = tmp_path / "shop [2]"

    message = printed(run_copier, template, repository / folder, project_name="Billing API")

    assert "git init" not in message
    assert "\n  uv sync " in message
    assert f"directory of the repository {repository}:" in message

    message = printed(run_copier, template, repository, project_name="Billing API")
    assert "git init" not in message
    assert "larger repository" not in message


def test_outside_of_one_a_repository_is_begun(
    run_copier: RunCopier, template: Path, tmp_path: Path
) -> None:
    (tmp_path / ".gitignore").touch()
    message = printed(run_copier, template, tmp_path / "service", project_name="Billing API")
    assert "\n  git init -b main && uv sync " in message
    assert "larger repository" not in message


@pytest.fixture(scope="module")
def workspace(render: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two services, one environment and one lock."""
    root = tmp_path_factory.mktemp("workspace") / "shop"
    for name in ("billing", "orders"):
        shutil.copytree(render(project_name=name), root / "services" / name)
    (root / "pyproject.toml").write_text(WORKSPACE, encoding="utf-8")
    for service in (root / "services").iterdir():
        command = [tool("uv"), "sync", "--quiet", "--project", str(service)]
        subprocess.run(command, check=True, timeout=300)
    commit(root, "A shop")
    return root


def findings(root: Path, service: str) -> dict[str, dict[str, str]]:
    """What `check` says in a service, by id."""
    done = subprocess.run(
        [root / ".venv" / "bin" / "python", "-m", "app", "check", "--json"],
        cwd=root / "services" / service,
        env={**os.environ, "UV": tool("uv")},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.stdout, done.stderr
    return {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}


@pytest.mark.long
def test_two_services_in_a_workspace_share_its_lock(workspace: Path) -> None:
    for service in ("billing", "orders"):
        found = findings(workspace, service)
        assert found["deploy.uv-lock"]["status"] == "ok", found["deploy.uv-lock"]
        assert str(workspace / "uv.lock") in found["deploy.uv-lock"]["verdict"]
        assert found["deploy.env-file"]["status"] == "ok"


@pytest.mark.long
def test_a_workspace_that_does_not_lock_is_found(workspace: Path) -> None:
    file, lock = workspace / "services/orders/pyproject.toml", workspace / "uv.lock"
    text, locked = file.read_text(encoding="utf-8"), lock.read_bytes()
    try:
        file.write_text(text.replace("app-orders", "app-billing"), encoding="utf-8")
        found = findings(workspace, "billing")["deploy.uv-lock"]
        assert (found["status"], "name" in found["verdict"]) == ("failed", True)

        file.write_text(text.replace('"gunicorn>=27', '"gunicorn>=26'), encoding="utf-8")
        found = findings(workspace, "orders")["deploy.uv-lock"]
        assert (found["status"], "is not what" in found["verdict"]) == ("failed", True)

        file.write_text(text, encoding="utf-8")
        lock.unlink()
        found = findings(workspace, "orders")["deploy.uv-lock"]
        assert (found["status"], found["verdict"]) == ("failed", "uv.lock is missing")
    finally:
        file.write_text(text, encoding="utf-8")
        lock.write_bytes(locked)


@pytest.mark.long
def test_a_service_that_left_the_workspace_needs_a_lock_of_its_own(workspace: Path) -> None:
    file = workspace / "pyproject.toml"
    file.write_text(f'{WORKSPACE}exclude = ["services/orders"]\n', encoding="utf-8")
    try:
        found = findings(workspace, "orders")["deploy.uv-lock"]
        assert (found["status"], found["verdict"]) == ("failed", "uv.lock is missing")
    finally:
        file.write_text(WORKSPACE, encoding="utf-8")


@pytest.mark.long
def test_a_committed_env_file_is_found(workspace: Path) -> None:
    (workspace / "services/billing/.env").write_text("SECRET_KEY=secret\n", encoding="utf-8")
    git(workspace, "add", "--force", "services/billing/.env")
    assert findings(workspace, "billing")["deploy.env-file"]["status"] == "failed"
    assert findings(workspace, "orders")["deploy.env-file"]["status"] == "ok"
    git(workspace, "rm", "--quiet", "--force", "services/billing/.env")
