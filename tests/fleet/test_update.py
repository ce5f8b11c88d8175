"""An update makes a branch, or nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Run

from support import git, mostly_long

Fingerprint = Callable[[Path], dict[str, str]]


def items(output: str) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in json.loads(output)["services"]}


@pytest.mark.long
def test_a_branch_with_what_copier_does(
    make_service: Callable[..., Path], releases: Path, run_fleet: Run, run_copier: Run
) -> None:
    own = {"app/settings.py": "# my own line\n"}
    service = make_service("service", additions=own, template=releases)
    git(service, "config", "user.name", "Somebody")
    head = git(service, "rev-parse", "HEAD")

    test = "grep -r 'new in 0.2.0' app"
    nobody = {"GIT_AUTHOR_NAME": None}
    done = run_fleet("update", service, "--test", test, "--json", cwd=releases, **nobody)

    assert (done.returncode, done.stderr) == (0, "")
    item = items(done.stdout)["service"]
    assert (item["outcome"], item["branch"], item["target"]) == (
        "updated",
        "template-0.2.0",
        "0.2.0",
    )
    assert git(service, "rev-parse", "HEAD") == head
    assert git(service, "rev-parse", "--abbrev-ref", "HEAD") == "main\n"
    assert git(service, "status", "--porcelain") == ""
    assert git(service, "log", "--format=%an %s", "-1", item["commit"]) == (
        "Somebody Update the template to 0.2.0\n"
    )
    assert run_copier("update", "--quiet", "--defaults", service).returncode == 0
    git(service, "add", "--all")
    assert git(service, "write-tree") == git(service, "rev-parse", f"{item['branch']}^{{tree}}")
    assert "_commit: 0.2.0" in git(service, "show", f"{item['branch']}:.copier-answers.yml")

    git(service, "reset", "--quiet", "--hard")
    again = run_fleet("update", service, "--json", cwd=releases)
    assert again.returncode == 0
    there = items(again.stdout)["service"]
    assert (there["outcome"], there["branch"], there["commit"], there["problem"]) == (
        "current",
        "template-0.2.0",
        item["commit"],
        None,
    )
    table = run_fleet("update", service, cwd=releases).stdout
    assert f"is there already: git -C {service} switch template-0.2.0" in table
    git(service, "merge", "--quiet", "template-0.2.0")
    current = run_fleet(
        "update", service, "--branch", "another", "--no-test", "--json", cwd=releases
    )
    assert (current.returncode, items(current.stdout)["service"]["outcome"]) == (0, "current")
    assert "another" not in git(service, "branch")


@pytest.mark.parametrize(
    ("name", "outcome", "problem"),
    mostly_long(
        [
            ("conflict", "failed", "conflicts in app/chassis/__init__.py"),
            ("failing", "failed", "the tests failed with code 3: no luck"),
            ("by default", "failed", "the tests failed with code 9: uv run pytest"),
            ("no-program", "failed", "the tests cannot be run"),
            ("changed", "refused", "it has changes that are not committed"),
            ("untracked", "refused", "it has changes that are not committed"),
        ]
    ),
)
def test_a_failure_leaves_nothing(
    name: str,
    outcome: str,
    problem: str,
    make_service: Callable[..., Path],
    small: Path,
    run_fleet: Run,
    fingerprint: Fingerprint,
    tmp_path: Path,
) -> None:
    edits = {"conflict": {"app/chassis/__init__.py": "# replaced\n"}}
    service = make_service("service", edits.get(name))
    match name:
        case "changed":
            (service / "app" / "main.py").write_text("# half done\n", encoding="utf-8")
        case "untracked":
            (service / "notes.txt").write_text("untracked\n", encoding="utf-8")
    (service / ".env").write_text("IGNORED=1\n", encoding="utf-8")
    tests = {"failing": ["--test", "sh -c 'touch app/main.py litter; echo no luck; exit 3'"]}
    tests["no-program"] = ["--test", "no-such-program"]
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "uv $@"; exit 9\n', encoding="utf-8")
    uv.chmod(0o755)
    before = fingerprint(service)

    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run_fleet("update", service, "--json", *tests.get(name, []), cwd=small, PATH=path)

    assert (done.returncode, done.stderr) == (1, "")
    item = items(done.stdout)["service"]
    assert item["outcome"] == outcome
    assert item["problem"].startswith(problem)
    assert fingerprint(service) == before


def test_a_lock_that_the_tests_renew_goes_along(
    make_service: Callable[..., Path], small: Path, run_fleet: Run
) -> None:
    service = make_service("service", {"uv.lock": "old\n"})
    test = "sh -c 'echo new > uv.lock; echo > extra'"
    done = run_fleet("update", service, "--test", test, cwd=small)
    assert done.returncode == 0, done.stdout
    assert git(service, "show", "template-0.2.0:uv.lock") == "new\n"
    assert "extra" not in git(service, "ls-tree", "--name-only", "template-0.2.0")


@pytest.mark.long
def test_a_service_from_an_address_gets_its_branch_in_the_cache(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, fingerprint: Fingerprint
) -> None:
    service = make_service("service", {"app/mine.py": "MINE = 1\n"})
    before = fingerprint(service)

    done = run_fleet("update", f"file://{service}", "--no-test", "--json", cwd=small)

    item = items(done.stdout)["service"]
    assert (done.returncode, item["outcome"]) == (0, "updated")
    assert fingerprint(service) == before
    files = git(Path(item["repository"]), "ls-tree", "-r", "--name-only", item["branch"])
    assert "app/mine.py" in files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "main"], "main is no release: a service updates to tags only"),
        (["--to", "HEAD"], "HEAD is no release: a service updates to tags only"),
        (["--test", " "], "--test: there is no command"),
        (["--test", "sh -c 'x"], "--test: No closing quotation"),
    ],
)
def test_a_mistaken_command_is_a_line(
    arguments: list[str],
    message: str,
    make_service: Callable[..., Path],
    small: Path,
    run_fleet: Run,
) -> None:
    done = run_fleet("update", make_service("service"), *arguments, cwd=small)
    assert (done.returncode, done.stderr) == (2, f"trackbed: {message}\n")
