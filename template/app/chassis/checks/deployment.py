# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks of the repository's files that builders and the platform read."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from app.chassis.checks.finding import Finding, failed, ok, skipped, warning
from app.chassis.settings import PROJECT_ROOT

RAILWAY_JSON_ENDS: Final = date(2026, 12, 1)
"""First day on which Railway reads no railway.json (docs.railway.com, config as code)."""

START_COMMANDS: Final = {
    "Procfile": re.compile(r"^web: *(.+?) *$", re.MULTILINE),
    "railway.json": re.compile(r'"startCommand": *"(.*?)"'),
    ".railway/railway.py": re.compile(r"^ *startCommand=[\"'](.*?)[\"']", re.MULTILINE),
    "railpack.json": re.compile(r'"startCommand": *"(.*?)"'),
    "nixpacks.toml": re.compile(r"^cmd *= *[\"'](.*?)[\"']", re.MULTILINE),
    "Dockerfile": re.compile(r"^CMD +\[(.*)\]", re.MULTILINE),
}

CONFLICT: Final = re.compile(rb"^<{7} .*^>{7} ", re.MULTILINE | re.DOTALL)

LARGEST_TEXT: Final = 1_000_000
"""Size in bytes from which a file is not searched for conflicts."""


def check() -> Iterator[Finding]:
    """Check the files in the repository, whatever the variables are."""
    yield lock_file()
    yield start_command()
    yield railway_json(datetime.now(UTC).date())
    yield env_file()
    yield unsettled()


def lock_file(root: Path = PROJECT_ROOT) -> Finding:
    """Check that a build installs what was tested. A uv workspace has one uv.lock, at its root."""
    name = "deploy.uv-lock"
    missing = failed(name, "uv.lock is missing", "run `uv sync` and commit the file it writes")
    places = (root, *root.parents)
    place = next((place for place in places if (place / "uv.lock").is_file()), None)
    if place is None:
        return missing
    shown = "uv.lock" if place == root else f"the workspace's {place / 'uv.lock'}"
    # uv need not be on the path, but `uv run` says where it is
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        return skipped(name, f"{shown} is there; uv is not, so it cannot be compared")
    command = [uv, "lock", "--check", "--project", str(root)]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    except (OSError, subprocess.SubprocessError):
        return skipped(name, f"{shown} is there; uv did not answer, so it was not compared")
    if "Unable to find lockfile" in done.stderr:
        return missing
    if "workspace members are both named" in done.stderr:
        return failed(
            name,
            "another member of the uv workspace has this one's name",
            "give it another `name` in pyproject.toml",
        )
    if "needs to be updated" in done.stderr:
        return failed(
            name,
            f"{shown} is not what pyproject.toml asks for, so the build will fail",
            "run `uv lock` and commit it",
        )
    if done.returncode != 0:
        return skipped(name, f"{shown} is there; uv could not compare it without the registry")
    return ok(name, f"{shown} is in step with pyproject.toml")


def start_command(root: Path = PROJECT_ROOT) -> Finding:
    """Check that all files that name a start command name the same one."""
    found: dict[str, str] = {}
    for name, form in START_COMMANDS.items():
        file = root / name
        if file.is_file() and (match := form.search(file.read_text(encoding="utf-8"))):
            words = re.findall(r'"(.*?)"', match[1]) if name == "Dockerfile" else [match[1]]
            found[name] = " ".join(words)
    if not found:
        return skipped("deploy.start-command", "no file here names one")
    if len(set(found.values())) > 1:
        shown = "; ".join(f"{name}: {command}" for name, command in found.items())
        return failed("deploy.start-command", shown, "make them the same")
    return ok("deploy.start-command", f"{next(iter(found.values()))} in {', '.join(found)}")


def railway_json(today: date, root: Path = PROJECT_ROOT) -> Finding:
    """Check that the settings in railway.json reach Railway."""
    name = "deploy.railway-json"
    program = root / ".railway" / "railway.py"
    there = (root / "railway.json").is_file()
    reads = r"[\"']railway\.json[\"']"
    if program.is_file() and re.search(reads, program.read_text(encoding="utf-8")):
        if there:
            return ok(name, ".railway/railway.py declares what railway.json says")
        return failed(
            name,
            ".railway/railway.py reads railway.json, which is missing",
            "git checkout $(git rev-list -n 1 HEAD -- railway.json)^ -- railway.json",
        )
    if not there:
        return ok(name, "no railway.json, which Railway does not read any more")
    if not any((directory / ".git").exists() for directory in (root, *root.parents)):
        return skipped(name, "this is not the repository, which has .railway/railway.py")
    if today >= RAILWAY_JSON_ENDS:
        return warning(
            name,
            f"railway.json is there, and Railway reads none since {RAILWAY_JSON_ENDS}",
            "RUNBOOK.md, Deploy on Railway: have .railway/railway.py read it, and apply that",
        )
    return ok(name, f"railway.json is read until {RAILWAY_JSON_ENDS}, by services that had one")


def env_file(root: Path = PROJECT_ROOT) -> Finding:
    """Check that .env and its variants are not in the repository, whose root may be above."""
    name = "deploy.env-file"
    git = shutil.which("git")
    if git is None:
        return skipped(name, "there is no git here")
    listed = subprocess.run(
        [git, "-C", str(root), "ls-files", "--", ".env", ".env.*", ":!.env.example*"],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        timeout=60,
    )
    if listed.returncode != 0:
        return skipped(name, "this is no git repository")
    if files := listed.stdout.splitlines():
        return failed(
            name,
            f"{', '.join(files)} is committed, with whatever secrets it holds",
            f"git rm --cached {' '.join(files)}, and replace the secrets",
        )
    return ok(name, ".env is not committed")


def unsettled(root: Path = PROJECT_ROOT) -> Finding:
    """Check that no file has conflicts that an update or a merge has left."""
    name = "deploy.conflicts"
    files = [path for path in root.iterdir() if path.is_file()]
    for place in ("app", "migrations", "tests", ".github", ".railway"):
        files += [path for path in (root / place).rglob("*") if path.is_file()]
    left = [
        path.relative_to(root).as_posix()
        for path in files
        if path.suffix == ".rej"
        or (path.stat().st_size < LARGEST_TEXT and CONFLICT.search(path.read_bytes()))
    ]
    if left:
        verdict = f"conflicts are left in {', '.join(sorted(left))}"
        return failed(name, verdict, "settle them, and delete *.rej files")
    return ok(name, "no file has a conflict left in it")
