"""Rules: what they say of answers and versions, and how a mistaken one is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Run

from trackbed.errors import FleetError
from trackbed.model import Inventory
from trackbed.policy import judge, read_rules, require_known

SERVICE = Inventory(
    name="billing",
    where="here",
    version="0.2.0",
    answers={
        "backup": "none",
        "workers": 4,
        "features": ["oauth"],
        "python_version": "3.9",
        "quiet": True,
        "project_name": "Billing # API",
    },
)


def broken(rule: str, tmp_path: Path, item: Inventory = SERVICE) -> list[str]:
    """What is found against the rule."""
    file = tmp_path / "rules"
    file.write_text(rule, encoding="utf-8")
    [judged] = judge([item], read_rules(file))
    return [violation.found for violation in judged.violations]


@pytest.mark.parametrize(
    "rule",
    [
        "backup == none",
        "backup != litestream",
        "backup in [none, litestream]",
        "backup not in [litestream]",
        "workers <= 4",
        "workers == 4",
        "workers > 3.5",
        "python_version < 3.13",
        "quiet == true",
        "features == oauth",
        "oauth in features",
        "conversations not in features",
        'project_name == "Billing # API"  # a comment',
        "version >= 0.2",
        "version == 0.2",
        "version < 1",
        "ai_provider != anthropic",
        "backup == litestream if workers > 4",
        "conversations in features if ai_provider == anthropic",
    ],
)
def test_it_is_kept(rule: str, tmp_path: Path) -> None:
    assert broken(rule, tmp_path) == []


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("backup != none", "backup is none"),
        ("backup in [railway, litestream]", "backup is none"),
        ("backup not in [none]", "backup is none"),
        ("workers < 4", "workers is 4"),
        ("workers != 4", "workers is 4"),
        ("python_version >= 3.10", "python_version is 3.9"),
        ("quiet == false", "quiet is true"),
        ("conversations in features", "features is [oauth]"),
        ("oauth not in features", "features is [oauth]"),
        ("version >= 0.2.1", "version is 0.2.0"),
        ("ai_provider == echo", "ai_provider is not answered"),
        ("backup > 1", "backup is none"),
        ("backup != none if oauth in features", "backup is none"),
        ("none in backup", "backup is none"),
    ],
)
def test_it_is_broken(rule: str, found: str, tmp_path: Path) -> None:
    assert broken(rule, tmp_path) == [found]


def test_commits_after_a_release_are_more_than_it(tmp_path: Path) -> None:
    later = Inventory(name="billing", where="here", version="0.2.0", distance=3)
    assert broken("version > 0.2.0", tmp_path, later) == []
    assert broken("version < 0.2.1", tmp_path, later) == []


def test_an_unknown_version_keeps_no_rule_of_versions(tmp_path: Path) -> None:
    unknown = Inventory(name="billing", where="here", unknown="commit abc1234 is no release")
    [found] = broken("version != 0.1", tmp_path, unknown)
    assert found == "version is unknown: commit abc1234 is no release"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("backup", "this is no rule"),
        ("backup = none", "this is no rule"),
        ("backup != ", "this is no rule"),
        ("__import__('os')", "this is no rule"),
        ("backup != none and workers < 3", "this is no rule"),
        ("workers <= few", "few is no number or version"),
        ("version == latest", "latest is no number or version"),
        ("backup in []", "the list is empty"),
        ("backup != none if", "this is no rule"),
    ],
)
def test_a_mistaken_rule_is_named_with_its_line(rule: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_text(f"# first\nworkers < 9\n{rule}\n", encoding="utf-8")
    with pytest.raises(FleetError) as error:
        read_rules(file)
    assert str(error.value) == f"{file}, line 3: {message}: {rule.strip()}"


def test_rules_name_questions_only(tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_text("backup != none if bakcup == x", encoding="utf-8")
    with pytest.raises(FleetError, match="line 1: there is no question bakcup"):
        require_known(read_rules(file), {"backup"}, file)


@pytest.mark.parametrize(
    ("rules", "code", "out", "error"),
    [
        ("workers <= 4", 0, "1 service, 0 break rules", ""),
        ("backup != railway", 1, "backup != railway: backup is railway", ""),
        ("backup !=! railway", 2, "", "line 1: this is no rule"),
        ("colour == red", 2, "", "there is no question colour"),
        ("# nothing", 2, "", "there are no rules"),
        (None, 2, "", "No such file"),
    ],
)
def test_the_command(
    rules: str | None,
    code: int,
    out: str,
    error: str,
    tmp_path: Path,
    fabricate: Callable[..., Path],
    template: Path,
    run_fleet: Run,
) -> None:
    file = tmp_path / "rules"
    if rules is not None:
        file.write_text(rules, encoding="utf-8")

    done = run_fleet("policy", file, fabricate("billing", source=str(template)))

    assert (done.returncode, done.stderr.count("\n")) == (code, 1 if error else 0)
    assert out in done.stdout
    assert error in done.stderr
