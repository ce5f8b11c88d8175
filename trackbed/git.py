"""git, without questions, hooks and surprises."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from trackbed.errors import ServiceError, one_line

TIMEOUT = 300

SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
}


def isolate() -> None:
    """Settings for git in this process and all that it starts, Copier's among them."""
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        os.environ.pop(name, None)
    os.environ["GIT_TERMINAL_PROMPT"] = "0"
    os.environ["GIT_OPTIONAL_LOCKS"] = "0"
    os.environ["GIT_LFS_SKIP_SMUDGE"] = "1"
    os.environ.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20")
    count = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    for number, (key, value) in enumerate(SETTINGS.items(), start=count):
        os.environ[f"GIT_CONFIG_KEY_{number}"] = key
        os.environ[f"GIT_CONFIG_VALUE_{number}"] = value
    os.environ["GIT_CONFIG_COUNT"] = str(count + len(SETTINGS))


def git(directory: Path | None, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What it prints.

    Raises:
        ServiceError: it failed; the message is git's own.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise ServiceError(f"git {arguments[0]} took more than {TIMEOUT} s") from None
    except OSError as error:
        raise ServiceError(f"git cannot be run: {error}") from None
    if done.returncode:
        raise ServiceError(complaint(done.stderr) or f"git {arguments[0]} failed")
    return done.stdout


def complaint(stderr: str) -> str:
    """git's first error: hints follow it."""
    lines = [line.strip() for line in stderr.splitlines()]
    for line in lines:
        if line.startswith(("fatal: ", "error: ")):
            return line.split(": ", 1)[1]
    return one_line(stderr) if stderr.strip() else ""


def commit_of(repository: Path, revision: str) -> str | None:
    """The full hash of the commit that a revision names, if there is one."""
    if not revision or revision.startswith("-") or "\n" in revision:
        return None
    try:
        return git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except ServiceError:
        return None
