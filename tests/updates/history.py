"""The releases that projects have been made from, and how a project is updated and looked at."""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from packaging.version import Version

from support import ROOT, SETTINGS, files, git, load_toml, recorded
from support.ownership import ANSWERS_FILE, is_theirs

RunCopier = Callable[..., CompletedProcess[str]]
Contents = dict[str, bytes]

RELEASES: list[dict[str, Any]] = load_toml(ROOT / "releases.toml")["release"]
VERSIONS: list[str] = [release["version"] for release in RELEASES]
OLDEST = VERSIONS[0]


def next_version(versions: Sequence[str]) -> str:
    newest = max(map(Version, versions))
    return f"{newest.major}.{newest.minor + 1}.0"


NEXT = next_version(VERSIONS)


def tag_releases(repository: Path, releases: Sequence[Mapping[str, Any]]) -> None:
    """One annotated tag for each release."""
    for release in releases:
        version, revision = release["version"], release["commit"]
        found = subprocess.run(
            ["git", "cat-file", "-e", f"{revision}^{{commit}}"], cwd=repository, capture_output=True
        )
        assert found.returncode == 0, (
            f"{version} of releases.toml is commit {revision}, which this clone of the "
            "repository does not have: git fetch --unshallow"
        )
        git(repository, "tag", "--annotate", "--message", version, version, revision)


def trust(release: str) -> list[str]:
    """The option that an update needs if it crosses a migration: those are commands."""
    crossed = [
        migration
        for migration in SETTINGS.get("migrations", [])
        if Version(release) < Version(migration["version"]) <= Version(NEXT)
    ]
    return ["--trust"] if crossed else []


def data_options(answers: Mapping[str, object]) -> list[str]:
    """Answers as the command line takes them."""
    written = {
        name: f"[{', '.join(value)}]" if isinstance(value, list) else value
        for name, value in answers.items()
    }
    return [f"--data={name}={value}" for name, value in written.items()]


def update(run_copier: RunCopier, project: Path, *options: str) -> str:
    """Update to the newest release, as people do it, without a terminal."""
    done = run_copier("update", "--defaults", *options, cwd=project)
    assert done.returncode == 0, done.stderr
    assert recorded(project)["_commit"] == NEXT
    return done.stdout + done.stderr


def contents(project: Path) -> Contents:
    return {
        name: path.read_bytes() for name, path in files(project).items() if name != ANSWERS_FILE
    }


def expected(before: Contents, fresh: Contents) -> Contents:
    """What is to come out: the person's own as before, all else as the newest release has it."""
    return {
        **{name: content for name, content in before.items() if is_theirs(name)},
        **{name: content for name, content in fresh.items() if not is_theirs(name)},
    }


def conflicts(project: Path) -> set[str]:
    """The files that the person is told to look at."""
    unmerged = set(git(project, "diff", "--name-only", "--diff-filter=U").splitlines())
    marked = {
        name
        for name, path in files(project).items()
        if re.search(rb"^(<{7} before|>{7} after) updating", path.read_bytes(), re.MULTILINE)
    }
    assert marked == unmerged
    rejected = {name for name in files(project) if name.endswith((".rej", ".orig"))}
    return marked | rejected


def lines(content: bytes) -> Counter[bytes]:
    """A file's lines that are not blank, whatever ends them."""
    return Counter(line for line in content.splitlines() if line.strip())


def written(before: Contents, after: Contents) -> dict[str, Counter[bytes]]:
    """The lines that an edit has added, by file."""
    changed = {name for name in after if after[name] != before.get(name)}
    return {name: lines(after[name]) - lines(before.get(name, b"")) for name in changed}


def removed(before: Contents, after: Contents) -> dict[str, Counter[bytes]]:
    """The lines that an edit has taken out of files that are still there."""
    return {
        name: lost for name in after if (lost := lines(before.get(name, b"")) - lines(after[name]))
    }
