"""Services that do not stand alone: in a monorepo, beside another template, on Windows."""

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from commands import Run

from support import commit, git
from trackbed.update import branch_name

OTHER = "_commit: 3.0.0\n_src_path: gh:acme/docs\nbackup: none\n"
OURS = ".copier-answers.trackbed.yml"


def items(output: str) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in json.loads(output)["services"]}


@pytest.mark.long
def test_services_in_directories_of_a_repository(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    mono = tmp_path / "mono"
    (mono / "services").mkdir(parents=True)
    (mono / "services" / "notes.txt").write_text("none\n", encoding="utf-8")
    (mono / "services" / "library").mkdir()
    for name in ("billing", "orders"):
        make_service(name).rename(mono / "services" / name)
        git(mono / "services" / name, "rev-parse", "HEAD")
        for file in sorted((mono / "services" / name / ".git").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (mono / "services" / name / ".git").rmdir()
    commit(mono, "Services")
    services = mono / "services"
    (services / "orders" / "app" / "main.py").write_text("# half done\n", encoding="utf-8")

    listed = items(run_fleet("inventory", "--json", services, cwd=small).stdout)
    assert {name: item["version"] for name, item in listed.items()} == {
        "billing": "0.1.0",
        "orders": "0.1.0",
    }
    drift = items(run_fleet("drift", "--json", services, cwd=small).stdout)
    assert drift["billing"] | {"where": ""} == drift["billing"] | {
        "where": "", "changed": [], "missing": [], "problem": None,
    }  # fmt: skip
    forecast = items(run_fleet("forecast", "--json", services, cwd=small).stdout)
    assert {item["verdict"] for item in forecast.values()} == {"clean"}
    assert [item["notes"] for item in forecast.values()] == [
        [], ["changes that are not committed are left out"]
    ]  # fmt: skip
    git(mono, "checkout", "--quiet", ".")
    for _ in range(2):
        done = run_fleet("update", "--json", "--no-test", services, cwd=small)
        found = items(done.stdout)
        assert done.returncode == 0, done.stdout
        assert {name: item["branch"] for name, item in found.items()} == {
            "billing": "template-0.2.0-services-billing",
            "orders": "template-0.2.0-services-orders",
        }
    changed = git(mono, "diff", "--name-only", "main", "template-0.2.0-services-orders").split()
    assert changed
    assert all(name.startswith("services/orders/") for name in changed)


def test_directories_of_a_repository_have_branches_of_their_own() -> None:
    def name(inside: str) -> str:
        job = SimpleNamespace(inside=PurePosixPath(inside), step=SimpleNamespace(name="0.2.0"))
        return branch_name(job)  # type: ignore[arg-type]

    assert name(".") == "template-0.2.0"
    assert name("services/billing") == "template-0.2.0-services-billing"
    alike = ["a/b/c", "a-b/c", "a/b-c", "a b/c", "A/b/c", "a/b/c/\N{GREEK SMALL LETTER ALPHA}"]
    names = [name(inside).lower() for inside in alike]
    assert len(set(names)) == len(alike)
    assert all(re.fullmatch(r"[a-z0-9.-]+", one) for one in names)


@pytest.mark.long
def test_the_answers_to_another_template_stand_beside_ours(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    service = make_service("service")
    (service / ".copier-answers.yml").rename(service / OURS)
    (service / ".copier-answers.yml").write_text(OTHER, encoding="utf-8")
    commit(service, "Two templates")
    twice = make_service("twice")
    (twice / OURS).write_bytes((twice / ".copier-answers.yml").read_bytes())
    commit(twice, "Twice")
    git(service, "switch", "--quiet", "--create", "other")
    git(service, "switch", "--quiet", "main")
    repos = tmp_path / "repos.toml"
    repos.write_text('[[service]]\npath = "services/service"\nbranch = "other"\n')

    listed = items(run_fleet("inventory", "--json", service, twice, cwd=small).stdout)
    assert (listed["service"]["version"], listed["service"]["behind"]) == ("0.1.0", 1)
    assert listed["twice"]["problem"] == (
        f"several answers files are of this template: {OURS}, .copier-answers.yml"
    )
    branch = items(run_fleet("inventory", "--json", "--repos", repos, cwd=small).stdout)
    assert branch["service"]["version"] == "0.1.0"
    assert run_fleet("drift", service, cwd=small).returncode == 0
    forecast = items(run_fleet("forecast", "--json", service, cwd=small).stdout)
    assert forecast["service"]["verdict"] == "clean", forecast
    assert OURS in forecast["service"]["changed"]
    assert ".copier-answers.yml" not in forecast["service"]["changed"]
    done = items(run_fleet("update", "--json", "--no-test", service, cwd=small).stdout)
    assert done["service"]["outcome"] == "updated"
    assert "_commit: 0.2.0" in git(service, "show", f"template-0.2.0:{OURS}")
    assert git(service, "show", "template-0.2.0:.copier-answers.yml") == OTHER


@pytest.mark.long
def test_files_that_were_checked_out_with_other_line_ends(
    make_service: Callable[..., Path], small: Path, run_fleet: Run
) -> None:
    service = make_service("service")
    git(service, "config", "core.autocrlf", "true")
    for name in git(service, "ls-files").split():
        (service / name).unlink()
    git(service, "checkout", "--quiet", "--force", "HEAD", "--", ".")
    assert b"\r\n" in (service / "README.md").read_bytes()
    (service / "app" / "main.py").touch()

    assert run_fleet("drift", service, cwd=small).returncode == 0
    forecast = items(run_fleet("forecast", "--json", service, cwd=small).stdout)["service"]
    assert (forecast["verdict"], forecast["notes"]) == ("clean", [])
    done = items(run_fleet("update", "--json", "--no-test", service, cwd=small).stdout)["service"]
    assert done["outcome"] == "updated", done
    assert "\r" not in git(service, "show", "template-0.2.0:README.md")
