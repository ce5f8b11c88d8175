"""Edits of the template's own files are found, and nobody else's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Run

from support import ROOT, git
from trackbed.errors import FleetError
from trackbed.templates import read_ownership


@pytest.mark.long
def test_changed_and_missing_files(
    make_service: Callable[..., Path], releases: Path, run_fleet: Run
) -> None:
    mine = {"app/main.py": "# mine\n", "README.md": "Mine.\n"}
    make_service("same", mine, template=releases)
    windows = make_service("windows", template=releases)
    http = windows / "app" / "chassis" / "http.py"
    http.write_bytes(http.read_bytes().replace(b"\n", b"\r\n"))
    drifted = make_service("drifted", {"app/chassis/http.py": "# patched\n"}, template=releases)
    (drifted / "app" / "chassis" / "times.py").unlink()
    git(drifted, "branch", "patched")
    git(drifted, "stash", "--quiet")

    done = run_fleet("drift", drifted.parent, "--json", cwd=releases)

    assert (done.returncode, done.stderr) == (1, "")
    found = {item["name"]: item for item in json.loads(done.stdout)["services"]}
    assert found["drifted"]["changed"] == ["app/chassis/http.py"]
    assert found["drifted"]["missing"] == []
    for name in ("same", "windows"):
        item = found[name]
        assert (item["version"], item["changed"], item["missing"]) == ("0.1.0", [], [])

    git(drifted, "stash", "pop", "--quiet")
    done = run_fleet("drift", drifted, cwd=releases)
    assert "app/chassis/times.py (missing)" in done.stdout
    assert "1 service, 1 with drift, 0 with problems" in done.stdout


@pytest.mark.long
def test_a_branch_is_compared_where_it_is_asked_for(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    service = make_service("service", {"app/chassis/worker.py": "# patched\n"})
    git(service, "branch", "patched")
    git(service, "reset", "--quiet", "--hard", "HEAD~")
    repos = tmp_path / "repos.toml"
    repos.write_text(f"[[service]]\npath = '{service}'\nbranch = 'patched'\n")

    on_branch = run_fleet("drift", "--repos", repos, "--json", cwd=small)
    here = run_fleet("drift", service, "--json", cwd=small)

    [item] = json.loads(on_branch.stdout)["services"]
    assert item["changed"] == ["app/chassis/worker.py"]
    assert here.returncode == 0


def test_ownership_of_paths() -> None:
    ownership = read_ownership(ROOT / "ownership.toml")
    assert ownership.owns("app/chassis/http.py")
    assert ownership.owns("migrations/env.py")
    assert not ownership.owns("app/chassis.py")
    assert not ownership.owns("migrations/env.py.bak")
    assert not ownership.owns("app/main.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("[[template]\n", "Expected"),
        ("[user]\n", "there is no template"),
        ("[[template]]\nheader = 'x'\n", "there is no paths"),
        ("[[template]]\npaths = [3]\n", "paths are texts"),
    ],
)
def test_a_mistaken_list_is_a_line(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "ownership.toml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(FleetError, match=message):
        read_ownership(file)
