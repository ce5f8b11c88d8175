"""Runner of git with the person's own settings, for the repository that is theirs."""

import os
import subprocess
from pathlib import Path

from trackbed.errors import ServiceError
from trackbed.git import ELSEWHERE, complaint

environment: dict[str, str] = {}
"""Variables as they were when the command began, without those that redirect git."""


def remember() -> None:
    """Keep the variables, before they are changed for everything else."""
    environment.update(
        {name: value for name, value in os.environ.items() if name not in ELSEWHERE},
        GIT_OPTIONAL_LOCKS="0",
        GIT_TERMINAL_PROMPT="0",
    )


def git(
    directory: Path, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
) -> str:
    """Run git with the person's own settings, and those of the repository.

    Raises:
        ServiceError: it failed. The message is git's own.
    """
    done = subprocess.run(
        ["git", *arguments],
        cwd=directory,
        env={**environment, **(env or {})},
        input=stdin,
        capture_output=True,
    )
    if done.returncode:
        said = complaint(done.stderr.decode("utf-8", "replace"))
        raise ServiceError(said or f"git {arguments[0]} failed")
    return done.stdout.decode("utf-8", "surrogateescape")
