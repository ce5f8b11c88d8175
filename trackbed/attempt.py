"""Trial of `copier update` in a clone, and the search for lost edits of the service."""

import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from trackbed import render
from trackbed.errors import ServiceError
from trackbed.files import read_within, require_inside
from trackbed.git import BYTES, borrow, checkout_settings, git, links_of, own_path
from trackbed.internals import PREFIX
from trackbed.model import Attempt, Loss, Service
from trackbed.services import ANSWERS
from trackbed.templates import Step

MARKERS = {b"<<<<<<< before updating", b">>>>>>> after updating"}
VERSION_LINES = re.compile(rb"^(_commit|_src_path):.*\n?", re.MULTILINE)
TOKEN = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True)
class Job:
    """Job with all that a process needs to try an update.

    Attributes:
        commit: the full hash of the commit that the service is at, or why there is none.
        trust: the template, which is the person's own, may run its commands.
    """

    service: Service
    directory: Path
    top: Path
    answers: Mapping[str, Any]
    version: str | None
    step: Step
    trust: bool
    workspace: Path
    commit: str | ServiceError
    answers_file: str = ANSWERS

    @property
    def inside(self) -> Path:
        """Return the service's path within its repository."""
        return self.directory.relative_to(self.top)


def clone_path(job: Job, scratch: Path) -> Path:
    """Return a path with the same name, because a template may name things after the directory."""
    return scratch / file_name(job.top.name if job.service.path else job.service.name)


def file_name(name: str) -> str:
    """Return a valid name for a directory, whatever a service is called."""
    return re.sub(r"[^\w.-]|^\.+", "-", name)[:100] or "service"


def clone(job: Job, directory: Path) -> Path:
    """Check out the service's commit in a new repository, and return the service in it.

    Raises:
        ServiceError: there is no commit, or its files are too many, or lead somewhere else.
    """
    if isinstance(job.commit, ServiceError):
        raise ServiceError(str(job.commit))
    here = f"--git-dir={borrow(job.top, directory, job.commit)}"
    links = links_of(directory, job.commit)
    git(directory, here, f"--work-tree={directory}", "reset", "--quiet", "--hard")
    require_inside(directory, links)
    project = directory / job.inside
    try:
        found = stat.S_ISREG(os.lstat(project / job.answers_file).st_mode)
    except OSError:
        found = False
    if not found:
        raise ServiceError(f"its last commit has no {job.answers_file}")
    return project


def uncommitted(job: Job) -> bool:
    """Return whether files that are checked out differ from the commit, or are new.

    git is asked with a copy of the index, in a repository without the service's settings. With
    them, git would run what they say.
    """
    if job.service.url or isinstance(job.commit, ServiceError):
        return False
    with workspace(job) as scratch:
        here = borrow(job.top, Path(scratch) / "status", job.commit)
        for name in ("index", "info/exclude"):
            with suppress(OSError):
                path = own_path(job.top, name)
                data = read_within(path.parent, Path(path.name), BYTES)
                (here / name).write_bytes(data)
                # An index that is split has its entries in further files
                for shared in path.parent.glob("sharedindex.*"):
                    data = read_within(path.parent, Path(shared.name), BYTES)
                    (here / shared.name).write_bytes(data)
        options = [f"--git-dir={here}", f"--work-tree={job.top}", *checkout_settings(job.top)]
        asked = ["status", "--porcelain", "-z", "--ignore-submodules=all", "--", str(job.inside)]
        return bool(git(job.top, *options, *asked))


def try_update(job: Job, project: Path, scratch: Path) -> Attempt:
    """Update the project, which is a clone, and return what the update did.

    Raises:
        ServiceError: Copier gave up.
    """
    try:
        target = job.step.target
        with render.prepared(job.step.old, job.step.new, target, scratch, own=job.step.own):
            render.update(project, job.step.target, trust=job.trust, answers_file=job.answers_file)
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
    """Return git's two letters and the path within the project for each file that changed."""
    listed = git(
        project,
        "status",
        "--porcelain",
        "-z",
        "--untracked-files=all",
        "--no-renames",
        "--ignore-submodules=all",
        ".",
    )
    prefix = git(project, "rev-parse", "--show-prefix").removesuffix("\n")
    entries = [(entry[:2], entry[3:]) for entry in listed.split("\0") if entry]
    return [(state, name.removeprefix(prefix)) for state, name in entries]


def has_markers(file: Path) -> bool:
    return any(line.rstrip() in MARKERS for line in read_bytes(file).split(b"\n"))


def losses(job: Job, project: Path, scratch: Path, changed: list[str]) -> list[Loss]:
    """Return the words that the service had added to the recorded version and that are gone."""
    if not any(vanished(project, name, job) for name in changed):
        return []
    original = scratch / PREFIX / file_name(job.directory.name)
    with render.prepared(job.step.old, job.step.old, "", scratch, own=job.step.own):
        render.copy(job.answers, original, trust=job.trust, answers_file=job.answers_file)
    return lost_words(job, project, original, changed)


def lost_words(job: Job, project: Path, original: Path, changed: list[str]) -> list[Loss]:
    """Return the lost words, if the recorded version is rendered already."""
    lost = []
    for name in changed:
        words = vanished(project, name, job)
        before = read_before(project, name, job)
        rendered = without_version(name, read_bytes(original / name), job)
        if before == rendered:
            continue
        added = tokens(before) - tokens(rendered)
        after = tokens(read_bytes(project / name))
        missing = [word for word in added if word in words and after[word] < added[word]]
        if missing:
            lost.append(Loss(path=name, tokens=missing))
    return lost


def vanished(project: Path, name: str, job: Job) -> Counter[str]:
    before = read_before(project, name, job)
    return tokens(before) - tokens(read_bytes(project / name)) if before else Counter()


def read_before(project: Path, name: str, job: Job) -> bytes:
    """Return a file as the last commit has it, or nothing."""
    try:
        text = git(project, "cat-file", "blob", f"HEAD:./{name}")
    except ServiceError:
        return b""
    return without_version(name, text.encode("utf-8", "surrogateescape"), job)


def without_version(name: str, data: bytes, job: Job) -> bytes:
    """Return a file's content, without the lines of the answers file that an update writes."""
    return VERSION_LINES.sub(b"", data) if name == job.answers_file else data


def read_bytes(file: Path) -> bytes:
    if file.is_symlink():
        return os.fsencode(os.readlink(file))
    try:
        return read_within(file.parent, Path(file.name), BYTES)
    except (OSError, ServiceError):  # It is no file that can be read
        return b""


def tokens(data: bytes) -> Counter[str]:
    """Return the words and signs of a text. Data that is no text counts as one word."""
    try:
        return Counter(TOKEN.findall(data.decode("utf-8")))
    except UnicodeDecodeError:
        return Counter([f"binary, {len(data)} bytes, {crc32(data):08x}"])


def workspace(job: Job) -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(
        prefix="service-", dir=job.workspace, ignore_cleanup_errors=True
    )
