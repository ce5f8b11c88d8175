"""Releases: the list of them is true, and the next one is made by one command."""

import datetime
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from support import ROOT, commit, git

RELEASES: list[dict[str, Any]] = tomllib.loads((ROOT / "releases.toml").read_text())["release"]


def test_every_release_is_a_commit_of_this_history() -> None:
    """A shallow clone lacks them: `git fetch --unshallow`."""
    ancestors = set(git(ROOT, "rev-list", "HEAD").split())
    for row in RELEASES:
        assert row.keys() == {"version", "commit", "date", "summary"}
        assert row["commit"] in ancestors, row["version"]
        assert isinstance(row["date"], datetime.date)
        assert 0 < len(row["summary"]) <= 100


def test_releases_follow_each_other() -> None:
    versions = [Version(row["version"]) for row in RELEASES]
    assert versions == sorted(set(versions))
    commits = [row["commit"] for row in RELEASES]
    for older, newer in pairwise(commits):
        git(ROOT, "merge-base", "--is-ancestor", older, newer)


def test_the_pages_tell_of_every_release() -> None:
    upgrading = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
    told = re.findall(r"^## (\S+)$", upgrading, re.MULTILINE)
    assert [
        version for version in told if Version(version) <= Version(RELEASES[-1]["version"])
    ] == [row["version"] for row in reversed(RELEASES)]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+), \d{4}-\d\d-\d\d$", changelog, re.MULTILINE) == [
        row["version"] for row in reversed(RELEASES)
    ]


@pytest.fixture
def repository(snapshot: Path, tmp_path: Path) -> Path:
    """What a release needs of this repository, on main and clean."""
    clone = tmp_path / "clone"
    for name in ("CHANGELOG.md", "docs/upgrading.md", "releases.toml", "scripts/release"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((snapshot / name).read_bytes())
    changelog = clone / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    changelog.write_text(text.replace("## Unreleased\n", "## Unreleased\n\n- Something new.\n", 1))
    upgrading = clone / "docs" / "upgrading.md"
    text = upgrading.read_text(encoding="utf-8")
    upgrading.write_text(text.replace("\n## ", "\n## 9.0.0\n\nNothing.\n\n## ", 1))
    commit(clone, "First")
    git(clone, "branch", "--move", "--force", "main")
    return clone


def release(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "scripts" / "release"), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8")


def test_a_release_is_made(repository: Path) -> None:
    done = release(repository, "9.0.0", "Something new.")

    assert done.returncode == 0, done.stderr
    row = tomllib.loads((repository / "releases.toml").read_text())["release"][-1]
    assert (row["version"], row["summary"]) == ("9.0.0", "Something new.")
    assert row["commit"] == git(repository, "rev-list", "-n1", "9.0.0").strip()
    assert git(repository, "cat-file", "-t", "9.0.0").strip() == "tag"
    assert git(repository, "status", "--porcelain") == ""
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## Unreleased\n\n## 9.0.0, {row['date']}\n\n- Something new.\n" in changelog


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "usage: "),
        (("9.0.0",), "usage: "),
        (("9.0", "New."), "write it as 1.2.3"),
        (("0.0.1", "New."), "does not come after"),
        (("9.0.0", ""), "The summary has to be"),
        (("9.0.0", 'Say "hi".'), "The summary has to be"),
        (("9.0.1", "New."), "docs/upgrading.md has no section 9.0.1"),
    ],
)
def test_a_release_that_cannot_be_is_refused(
    repository: Path, arguments: tuple[str, ...], told: str
) -> None:
    before = git(repository, "rev-parse", "HEAD")

    done = release(repository, *arguments)

    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert git(repository, "rev-parse", "HEAD") == before
    assert git(repository, "status", "--porcelain") == git(repository, "tag", "--list") == ""


def test_a_tree_that_is_not_ready_is_refused(repository: Path) -> None:
    (repository / "new").write_text("x")
    assert "has changes" in release(repository, "9.0.0", "New.").stderr
    (repository / "new").unlink()

    git(repository, "switch", "--quiet", "--create", "other")
    assert "made on main" in release(repository, "9.0.0", "New.").stderr
    git(repository, "switch", "--quiet", "main")

    git(repository, "tag", "9.0.0")
    assert "never moved" in release(repository, "9.0.0", "New.").stderr
    git(repository, "tag", "--delete", "9.0.0")

    changelog = repository / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## Unreleased\n\n## 0.2.0, 2026-11-24\n")
    commit(repository, "Second")
    assert "nothing under Unreleased" in release(repository, "9.0.0", "New.").stderr
