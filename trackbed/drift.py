"""Drift, the template's own files that are not as the recorded version renders them."""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trackbed import render
from trackbed.attempt import Job, clone, clone_path, file_name, read_bytes, workspace
from trackbed.bounded import MEGABYTE
from trackbed.errors import ServiceError
from trackbed.files import directory_within, read_in
from trackbed.internals import PREFIX
from trackbed.model import Drift
from trackbed.services import committed, where
from trackbed.templates import Ownership

LARGEST = 16 * MEGABYTE
"""Maximum bytes of a service's file that is compared. A larger one differs."""


@dataclass(frozen=True)
class DriftJob:
    job: Job
    ownership: Ownership


def examine(drift: DriftJob) -> Drift:
    """Compare the service's working tree, or the branch that is asked for."""
    job = drift.job
    found = Drift(name=job.service.name, where=where(job.service), version=job.version)
    try:
        with workspace(job) as scratch:
            top, inside = job.top, job.inside
            if committed(job.service, job.directory):
                top = clone_path(job, Path(scratch))
                inside = clone(job, top).relative_to(top)
            rendered = Path(scratch) / PREFIX / file_name(job.directory.name)
            old = job.step.old
            with render.prepared(old, old, "", Path(scratch), own=job.step.own):
                render.copy(job.answers, rendered, trust=job.trust, answers_file=job.answers_file)
            compare(rendered, top, inside, drift.ownership, found)
    except render.TrustNeeded as error:
        found.problem = f"needs --trust: {error}"
    except ServiceError as error:
        found.problem = str(error)
    return found


def compare(rendered: Path, top: Path, inside: Path, ownership: Ownership, found: Drift) -> None:
    for file in sorted(rendered.rglob("*")):
        name = file.relative_to(rendered).as_posix()
        if not ownership.owns(name) or (file.is_dir() and not file.is_symlink()):
            continue
        own = own_bytes(top, inside / name)
        if own is None:
            found.missing.append(name)
        elif lines(own) != lines(read_bytes(file)):
            found.changed.append(name)


def own_bytes(top: Path, name: Path) -> bytes | None:
    """Return a service's file, a link's own text, or no bytes for anything else.

    None means that there is nothing of that name.
    """
    try:
        with directory_within(top, name.parent) as directory:
            try:
                return read_in(directory, name.name, LARGEST)
            except ServiceError:
                with suppress(OSError):
                    return os.fsencode(os.readlink(name.name, dir_fd=directory))
                return b""
    except ServiceError:  # A directory is a link
        return b""
    except OSError:
        return None


def lines(data: bytes) -> bytes:
    """Return a content with one kind of line endings."""
    return data.replace(b"\r\n", b"\n")


def patch(rendered: Path, top: Path, inside: Path, names: Sequence[str], scratch: Path) -> str:
    """Return the differences in some files as git prints them. Line endings do not count."""
    for side in ("template", "project"):
        (scratch / side).mkdir(parents=True)
    for name in names:
        ours, own = read_bytes(rendered / name), own_bytes(top, inside / name)
        for side, data in (("template", ours), ("project", own)):
            (scratch / side / name).parent.mkdir(parents=True, exist_ok=True)
            if data is not None:
                (scratch / side / name).write_bytes(lines(data))
    options = ("--no-index", "--no-prefix", "--no-ext-diff", "--no-color", "--no-renames")
    done = subprocess.run(
        ["git", "diff", *options, "--", "template", "project"],
        cwd=scratch,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    return done.stdout
