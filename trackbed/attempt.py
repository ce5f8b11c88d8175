"""`copier update` in a clone, and what became of the service's own edits."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from trackbed import render
from trackbed.errors import ServiceError
from trackbed.git import git
from trackbed.model import Attempt, Loss, Service
from trackbed.templates import Step

MARKERS = {b"<<<<<<< before updating", b">>>>>>> after updating"}
TOKEN = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True)
class Job:
    """All that a process needs to try an update."""

    service: Service
    directory: Path
    top: Path
    answers: Mapping[str, Any]
    version: str | None
    step: Step
    trust: bool
    workspace: Path

    @property
    def inside(self) -> Path:
        """The service within its repository."""
        return self.directory.relative_to(self.top)


def clone_path(job: Job, scratch: Path) -> Path:
    """A template may name things after the directory."""
    return scratch / (job.top.name if job.service.path else job.service.name)


def clone(job: Job, directory: Path) -> Path:
    """A repository of its own with the service's last commit. Returns the service in it.

    Raises:
        ServiceError: there is no commit, or no such branch.
    """
    options = ["--quiet", "--shared", "--single-branch", "--no-tags"]
    if job.service.path and job.service.branch:
        options += ["--branch", job.service.branch]
    git(None, "clone", *options, "--", str(job.top), str(directory))
    project = directory / job.inside
    if not (project / ".copier-answers.yml").is_file():
        raise ServiceError("its last commit has no .copier-answers.yml")
    return project


def try_update(job: Job, project: Path, scratch: Path) -> Attempt:
    """Update the project, a clone, and look at what it did.

    Raises:
        ServiceError: Copier gave up.
    """
    try:
        with render.prepared(job.step.old, job.step.new, job.step.target, job.directory):
            render.update(project, job.step.target, trust=job.trust)
    except render.TrustNeeded as error:
        return Attempt(trust=str(error))
    attempt = Attempt()
    for state, name in statuses(project):
        file = project / name
        attempt.changed.append(name)
        if "U" in state or state in ("AA", "DD") or name.endswith(".rej") or has_markers(file):
            attempt.conflicts.append(name)
    attempt.lost = losses(job, project, scratch, attempt.changed)
    return attempt


def statuses(project: Path) -> list[tuple[str, str]]:
    """Git's two letters for each file that changed, its path within the project."""
    listed = git(
        project, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "."
    )
    prefix = git(project, "rev-parse", "--show-prefix").strip()
    entries = [(entry[:2], entry[3:]) for entry in listed.split("\0") if entry]
    return [(state, name.removeprefix(prefix)) for state, name in entries]


def has_markers(file: Path) -> bool:
    return file.is_file() and any(
        line.rstrip() in MARKERS for line in file.read_bytes().split(b"\n")
    )


def losses(job: Job, project: Path, scratch: Path, changed: list[str]) -> list[Loss]:
    """Words that the service had added to the recorded version's files, and that are gone."""
    if not any(vanished(project, name) for name in changed):
        return []
    original = scratch / render.PREFIX / job.directory.name
    with render.prepared(job.step.old, job.step.old, "", job.directory):
        render.copy(str(job.answers["_src_path"]), original, job.answers, trust=job.trust)
    return lost_words(project, original, changed)


def lost_words(project: Path, original: Path, changed: list[str]) -> list[Loss]:
    """The same, where the recorded version is rendered already."""
    lost = []
    for name in changed:
        words = vanished(project, name)
        before = read_before(project, name)
        rendered = read_bytes(original / name)
        if before == rendered:
            continue
        added = tokens(before) - tokens(rendered)
        after = tokens(read_bytes(project / name))
        missing = [word for word in added if word in words and after[word] < added[word]]
        if missing:
            lost.append(Loss(path=name, tokens=missing))
    return lost


def vanished(project: Path, name: str) -> Counter[str]:
    before = read_before(project, name)
    return tokens(before) - tokens(read_bytes(project / name)) if before else Counter()


def read_before(project: Path, name: str) -> bytes:
    """A file as the last commit has it, or nothing."""
    done = subprocess.run(
        ["git", "cat-file", "blob", f"HEAD:./{name}"], cwd=project, capture_output=True
    )
    return done.stdout if done.returncode == 0 else b""


def read_bytes(file: Path) -> bytes:
    if file.is_symlink():
        return os.fsencode(os.readlink(file))
    return file.read_bytes() if file.is_file() else b""


def tokens(data: bytes) -> Counter[str]:
    """Its words and signs; of what is no text, the whole is one."""
    try:
        return Counter(TOKEN.findall(data.decode("utf-8")))
    except UnicodeDecodeError:
        return Counter([f"binary, {len(data)} bytes, {crc32(data):08x}"])


def workspace(job: Job) -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(
        prefix="service-", dir=job.workspace, ignore_cleanup_errors=True
    )
