"""Which version each service has, read from files, with whatever is wrong with them."""

import csv
import io
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from commands import Run

from support import ROOT, git
from trackbed.addresses import normalized, shown
from trackbed.errors import FleetError
from trackbed.model import Release
from trackbed.releases import behind, read_releases, recognize
from trackbed.services import find

RELEASES = [
    Release("0.1.0", "1" * 40, date(2026, 1, 1)),
    Release("0.2.0", "2b" * 20, date(2026, 2, 1)),
    Release("0.3.0rc1", "3" * 40, date(2026, 2, 15)),
    Release("0.3.0", "4" * 40, date(2026, 3, 1)),
]


@pytest.mark.parametrize(
    ("recorded", "version", "distance", "newer"),
    [
        ("0.1.0", "0.1.0", 0, 2),
        ("v0.1.0", "0.1.0", 0, 2),
        ("0.3.0", "0.3.0", 0, 0),
        ("0.1.0-3-gabc1234", "0.1.0", 3, 2),
        ("2b2b2b2", "0.2.0", 0, 1),
        ("2b" * 20, "0.2.0", 0, 1),
        (1111111, "0.1.0", 0, 2),
        ("0.3.0rc1", "0.3.0rc1", 0, 1),
    ],
)
def test_a_version_is_recognized(recorded: object, version: str, distance: int, newer: int) -> None:
    found = recognize(recorded, RELEASES)
    assert (found.version, found.distance, found.unknown) == (version, distance, None)
    assert behind(found, RELEASES) == newer


@pytest.mark.parametrize(
    ("recorded", "reason"),
    [
        (None, "no _commit: made from a directory without git"),
        ("abc1234", "commit abc1234 is no release"),
        ("main", "main is no version"),
        ("main-4-gabc1234", "main is no version"),
        ("0.9.0", "0.9.0 is not among the known releases"),
        ("0.3", "0.3 is not among the known releases"),
    ],
)
def test_another_is_unknown_with_a_reason(recorded: object, reason: str) -> None:
    assert recognize(recorded, RELEASES).unknown == reason


def test_the_repositorys_own_releases_can_be_read() -> None:
    assert read_releases(ROOT / "releases.toml")


@pytest.mark.parametrize(
    "same",
    [
        "gh:acme/trackbed",
        "https://github.com/acme/trackbed",
        "https://token@github.com/Acme/trackbed.git",
        "git@github.com:acme/trackbed.git",
        "ssh://git@github.com/acme/trackbed.git/",
        "git+https://github.com/acme/trackbed",
    ],
)
def test_addresses_that_are_one(same: str) -> None:
    assert normalized(same) == "github.com/acme/trackbed"


def test_no_password_is_shown() -> None:
    assert shown("https://me:secret@example.com/x.git") == "https://example.com/x.git"
    assert shown("git@example.com:x.git") == "git@example.com:x.git"


@pytest.fixture
def broken(tmp_path: Path, fabricate: Callable[..., Path]) -> dict[str, str]:
    """Services that cannot be read, and why."""
    services = tmp_path / "services"
    fabricate("no-yaml")
    (services / "no-yaml" / ".copier-answers.yml").write_text("a: 1\nb: [\n")
    fabricate("no-answers")
    (services / "no-answers" / ".copier-answers.yml").write_text("just text\n")
    fabricate("no-end")
    (services / "no-end" / ".copier-answers.yml").write_text("a: &a [*a]\n")
    fabricate("no-text")
    (services / "no-text" / ".copier-answers.yml").write_bytes(b"a: \xff\n")
    fabricate("no-file")
    (services / "no-file" / ".copier-answers.yml").unlink()
    fabricate("no-source")
    (services / "no-source" / ".copier-answers.yml").write_text("_commit: 0.1.0\n")
    (services / "no-git").mkdir()
    return {
        "no-answers": ".copier-answers.yml holds no answers",
        "no-end": ".copier-answers.yml holds what is no answer",
        "no-file": "no .copier-answers.yml: not made with Copier, or not kept up",
        "no-git": "not a git repository",
        "no-source": "the answers file names no template: no _src_path",
        "no-text": ".copier-answers.yml is not UTF-8",
        "no-yaml": ".copier-answers.yml is no valid YAML, line 3",
        "nowhere": "no such directory",
    }


def test_a_template_that_was_given_as_a_relative_path(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run
) -> None:
    """Its meaning is lost with the directory that it was given in."""
    service = fabricate("service", source=".")
    hint = "; it was made from .: if that was this template, add --address ."

    done = run_fleet("inventory", "--template", owner, "--json", service)
    [item] = json.loads(done.stdout)["services"]
    assert item["behind"] is None
    assert item["unknown"].endswith(hint)
    done = run_fleet("drift", service, "--template", owner, "--ownership", ROOT / "ownership.toml")
    assert hint in done.stdout

    done = run_fleet("inventory", "--template", owner, "--address", ".", "--json", service)
    [item] = json.loads(done.stdout)["services"]
    assert (item["version"], item["unknown"]) == ("0.1.0", None)


def test_broken_services_stop_nobody(
    broken: dict[str, str], fabricate: Callable[..., Path], owner: Path, run_fleet: Run
) -> None:
    good = fabricate("good")
    paths = [good.with_name(name) for name in broken]

    done = run_fleet("inventory", "--template", owner, "--json", *paths, good)

    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert report["summary"] == "9 services, 8 with problems"
    assert {item["name"]: item["problem"] for item in report["services"]} == {
        **broken,
        "good": None,
    }
    assert report["services"][-1] | {"where": "", "age_days": 0} == {
        "name": "good",
        "where": "",
        "problem": None,
        "template": "gh:acme/trackbed",
        "recorded": "0.1.0",
        "version": "0.1.0",
        "distance": 0,
        "unknown": None,
        "released": "2026-01-01",
        "age_days": 0,
        "behind": 1,
        "newest": "0.2.0",
        "answers": {
            "backup": "railway",
            "features": [],
            "python_version": "3.13",
            "workers": 1,
        },
    }
    assert report["services"][-1]["age_days"] > 300


def test_a_table_and_rows_for_a_spreadsheet(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run
) -> None:
    services = fabricate("one", backup="'=1+1'").parent
    fabricate("two", version="0.2.0-4-gabc1234", features="[oauth, conversations]")

    table = run_fleet("inventory", services, cwd=owner)
    rows = run_fleet("inventory", services, "--csv", cwd=owner)

    assert (table.returncode, table.stderr) == (0, "")
    lines = [line.split() for line in table.stdout.splitlines()]
    assert lines[0] == ["Service", "Version", "Days", "Behind", "Answers"]
    assert lines[1][:2] == ["one", "0.1.0"]
    assert lines[2][:4] == ["two", "0.2.0", "+", "4"]
    assert "features=[oauth,conversations]" in lines[2]
    one, two = csv.DictReader(io.StringIO(rows.stdout))
    assert (one["version"], one["behind"], one["answers.backup"]) == ("0.1.0", "1", "'=1+1")
    assert (two["distance"], two["answers.features"]) == ("4", "[oauth,conversations]")


def test_a_hundred_services_without_a_process_of_git(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run, tmp_path: Path
) -> None:
    for number in range(100):
        services = fabricate(f"service-{number}").parent
    (tmp_path / "empty").mkdir()

    done = run_fleet(
        "inventory", "--json", services, "--template", owner, "--address", "gh:acme/trackbed",
        PATH=str(tmp_path / "empty"),
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert {item["behind"] for item in json.loads(done.stdout)["services"]} == {1}


def test_another_templates_releases_are_its_tags(
    fabricate: Callable[..., Path], owner: Path, releases: Path, run_fleet: Run
) -> None:
    service = fabricate("other", source="https://git.example/other.git")
    gone = fabricate("gone", source="/nowhere/template")
    path = fabricate("path", source=str(releases))
    stand_in = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{releases}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://git.example/other.git",
    }

    done = run_fleet("inventory", "--json", service, gone, path, cwd=owner, **stand_in)

    other, lost, local = json.loads(done.stdout)["services"]
    assert (other["behind"], other["newest"], other["unknown"]) == (1, "0.2.0", None)
    assert local["unknown"] == (
        "made from another template, whose address is a path: "
        f"if {releases} is yours, add --template or --address {releases}"
    )
    assert (lost["version"], lost["behind"]) == ("0.1.0", None)
    assert lost["unknown"] == "the template is gone: /nowhere/template"


def test_a_branch_and_an_address(
    make_service: Callable[..., Path], owner: Path, run_fleet: Run, tmp_path: Path
) -> None:
    service = make_service("service")
    git(service, "switch", "--quiet", "--create", "older")
    answers = service / ".copier-answers.yml"
    answers.write_text(answers.read_text().replace("backup: railway", "backup: none"))
    git(service, "commit", "--quiet", "--all", "--message", "No backup")
    git(service, "switch", "--quiet", "main")
    repos = tmp_path / "repos.toml"
    repos.write_text(
        '[[service]]\nname = "here"\npath = "services/service"\n'
        '[[service]]\nname = "branch"\npath = "services/service"\nbranch = "older"\n'
        f'[[service]]\nname = "address"\nurl = "file://{service}"\nbranch = "older"\n'
        '[[service]]\nname = "unreachable"\nurl = "file:///nowhere/x.git"\n'
        '[[service]]\nname = "no-branch"\npath = "services/service"\nbranch = "nothing"\n'
    )

    for _ in range(2):  # cloned, and brought up to date
        done = run_fleet("inventory", "--json", "--repos", repos)
        items = {item["name"]: item for item in json.loads(done.stdout)["services"]}
        assert [items[name]["answers"].get("backup") for name in items] == [
            "railway",
            "none",
            "none",
            None,
            None,
        ]
    assert (
        "'/nowhere/x.git' does not appear to be a git repository"
        in (items["unreachable"]["problem"])
    )
    assert items["no-branch"]["problem"]
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[service]\n", "Expected"),
        ("[[services]]\npath = 'a'\n", "services: only [[service]] tables are known"),
        ("service = 3\n", "services are [[service]] tables"),
        ("[[service]]\nname = 'a'\n", "service 1: needs a path or a url, and not both"),
        ("[[service]]\npath = 'a'\nurl = 'b'\n", "needs a path or a url, and not both"),
        ("[[service]]\npath = 'a'\nbrunch = 'b'\n", "service 1: unknown key brunch"),
        ("[[service]]\npath = 3\n", "service 1: path must be a text"),
        ("[[service]]\nurl = '--upload-pack=x'\n", "service 1: url must be a text"),
        ("[[service]]\npath = 'a'\n[[service]]\npath = 'b/a'\n", "two services named a"),
        ('[[service]]\npath = "a\\u0000b"\n', "path has a character that cannot be seen"),
        ('[[service]]\nname = "a\\u001b[2J"\npath = "a"\n', "name has a character that cannot"),
        ("[[service]]\npath = '~no-such-user-here/a'\n", "Could not determine home directory"),
        ("", "no services"),
    ],
)
def test_a_mistake_in_the_list_is_a_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "repos.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FleetError) as error:
        find([], file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_services_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for team in ("red", "blue"):
        (tmp_path / team / "api" / ".git").mkdir(parents=True)
    found = find([str(tmp_path / "red"), str(tmp_path / "blue"), str(tmp_path / "red")], None)
    assert [service.name for service in found] == ["red/api", "blue/api"]


def test_help_tells_of_the_exit_codes(run_fleet: Run) -> None:
    for command in ("inventory", "drift", "policy", "forecast", "update"):
        done = run_fleet(command, "--help")
        assert done.returncode == 0
        assert "Exit codes: 0 all is well; 1" in done.stdout
    assert "Exit codes: 0 the page is written" in run_fleet("report", "--help").stdout
    assert run_fleet("inventory").returncode == 2
