"""What an update would do is told before, and nothing is touched for it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Run

from support import commit, git

Fingerprint = Callable[[Path], dict[str, str]]
SETTINGS = "app/settings.py"
CHASSIS = "app/chassis/__init__.py"


@pytest.fixture
def candidate(small: Path, tmp_path: Path) -> Path:
    """A clone of the template that can be changed."""
    directory = tmp_path / "candidate"
    git(tmp_path, "clone", "--quiet", str(small), str(directory))
    return directory


def services(output: str) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in json.loads(output)["services"]}


def test_clean_conflicting_lost_and_broken_ones(
    make_service: Callable[..., Path],
    small: Path,
    candidate: Path,
    run_fleet: Run,
    fingerprint: Fingerprint,
    tmp_path: Path,
) -> None:
    mine = {"app/api/mine.py": "MINE = 1\n"}
    make_service("clean", mine, additions={SETTINGS: "# my own line\n"})
    make_service("conflict", {CHASSIS: "# replaced by its owners\n"})
    make_service("lost", additions={"app/chassis/worker.py": "PRECIOUS = 'addition'\n"})
    make_service("no-commit", {".copier-answers.yml": f"_src_path: {small}\n"})
    make_service("no-such", {".copier-answers.yml": f"_src_path: {small}\n_commit: 0.0.9\n"})
    make_service("gone", {".copier-answers.yml": "_src_path: /nowhere/x\n_commit: 0.1.0\n"})
    (tmp_path / "services" / "no-git").mkdir()
    dirty = make_service("dirty")
    (dirty / "app" / "main.py").write_text("# half done\n", encoding="utf-8")
    # the template gives up a file that one of them has edited
    git(candidate, "rm", "--quiet", "template/app/chassis/worker.py")
    commit(candidate, "Without it", tag="0.3.0")
    names = ["clean", "conflict", "lost", "no-commit", "no-such", "gone", "no-git", "dirty"]
    paths = [tmp_path / "services" / name for name in names]
    before = {path: fingerprint(path) for path in [*paths, small, candidate]}

    done = run_fleet("forecast", "--to", "0.3.0", "--template", candidate, "--json", *paths)

    assert done.stderr == ""
    assert done.returncode == 1
    found = services(done.stdout)
    assert {name: item["verdict"] for name, item in found.items()} == {
        "clean": "clean",
        "conflict": "conflicts",
        "lost": "lost",
        "no-commit": "unknown",
        "no-such": "unknown",
        "gone": "unknown",
        "no-git": "unknown",
        "dirty": "clean",
    }
    assert {CHASSIS, "app/chassis/worker.py"} < set(found["clean"]["changed"])
    assert found["conflict"]["conflicts"] == [CHASSIS]
    [loss] = found["lost"]["lost"]
    assert loss["path"] == "app/chassis/worker.py"
    assert {"PRECIOUS", "addition"} <= set(loss["tokens"])
    assert found["no-commit"]["problem"] == "the answers file has no _commit"
    assert found["no-such"]["problem"] == "the template has no commit 0.0.9"
    assert found["gone"]["problem"] == "the template is gone: /nowhere/x"
    assert found["no-git"]["problem"] == "not a git repository"
    assert found["dirty"]["notes"] == ["changes that are not committed are left out"]
    assert json.loads(done.stdout)["summary"] == (
        "NO-GO: 8 services: 1 conflicts, 1 edits lost, 4 not to be forecast, 2 clean"
    )
    assert {path: fingerprint(path) for path in before} == before


@pytest.mark.long
def test_go_and_what_copier_itself_does(
    make_service: Callable[..., Path],
    releases: Path,
    run_fleet: Run,
    run_copier: Run,
) -> None:
    own = {SETTINGS: "# my own line\n", "README.md": "\nMore.\n"}
    first = make_service("first", additions=own, template=releases)
    second = make_service("second", template=releases)

    done = run_fleet("forecast", "--json", first, second, cwd=releases)
    updated = run_copier("update", "--quiet", "--defaults", first)

    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["target"], report["summary"]) == ("0.2.0", "GO: 2 services: 2 clean")
    assert updated.returncode == 0, updated.stderr
    changed = git(first, "diff", "--name-only").split()
    assert services(done.stdout)["first"]["changed"] == changed
    assert len(changed) > 1


@pytest.mark.long
def test_the_working_tree_is_a_candidate(
    make_service: Callable[..., Path], candidate: Path, run_fleet: Run, fingerprint: Fingerprint
) -> None:
    service = make_service("service")
    new = candidate / "template" / "app" / "chassis" / "new.py"
    new.write_text("NEW = True\n", encoding="utf-8")
    before = fingerprint(candidate)

    tree = run_fleet("forecast", service, "--to", "HEAD", "--json", cwd=candidate)
    tag = run_fleet("forecast", service, "--to", "0.2.0", "--json", cwd=candidate)

    assert "app/chassis/new.py" in services(tree.stdout)["service"]["changed"]
    assert "app/chassis/new.py" not in services(tag.stdout)["service"]["changed"]
    assert json.loads(tree.stdout)["target"] == "HEAD with changes"
    assert fingerprint(candidate) == before


@pytest.mark.long
def test_trust_is_told_and_not_asked(
    make_service: Callable[..., Path], candidate: Path, run_fleet: Run
) -> None:
    service = make_service("service")
    with (candidate / "copier.yml").open("a", encoding="utf-8") as file:
        file.write('\n_tasks:\n  - "touch ran"\n')
    commit(candidate, "Runs something", tag="0.3.0")

    refused = run_fleet("forecast", service, "--json", cwd=candidate)
    trusted = run_fleet("forecast", service, "--json", "--trust", cwd=candidate)

    assert refused.returncode == 1
    item = services(refused.stdout)["service"]
    assert (item["verdict"], item["problem"]) == ("trust", None)
    assert "tasks" in item["trust"]
    assert "ran" in services(trusted.stdout)["service"]["changed"]
    assert trusted.returncode == 0


def test_a_revision_that_is_not_there(
    make_service: Callable[..., Path], small: Path, run_fleet: Run
) -> None:
    done = run_fleet("forecast", make_service("service"), "--to", "0.9.0", cwd=small)
    message = "trackbed: the template has no tag, branch or commit 0.9.0\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_a_service_of_another_template(
    make_service: Callable[..., Path], tmp_path: Path, run_fleet: Run
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "copier.yml").write_text("name: x\n")
    commit(other, "Another", tag="0.2.0")

    done = run_fleet("forecast", make_service("service"), "--to", "0.2.0", "--json", cwd=other)

    assert "made from another template" in services(done.stdout)["service"]["problem"]


@pytest.mark.long
@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_CONFIG_COUNT"])
def test_gits_own_variables_do_not_disturb(
    variable: str, make_service: Callable[..., Path], small: Path, run_fleet: Run
) -> None:
    values = {"GIT_DIR": os.devnull, "GIT_CONFIG_COUNT": "1"}
    own = {"GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "Me"}
    done = run_fleet(
        "forecast", make_service("x"), cwd=small, **{variable: values[variable]}, **own
    )
    assert (done.returncode, done.stderr) == (0, "")
