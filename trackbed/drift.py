"""Which of the template's own files are not as the recorded version renders them."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trackbed import render
from trackbed.attempt import Job, clone, clone_path, read_bytes, workspace
from trackbed.errors import ServiceError
from trackbed.model import Drift
from trackbed.services import checked_out, where
from trackbed.templates import Ownership


@dataclass(frozen=True)
class DriftJob:
    job: Job
    ownership: Ownership


def examine(drift: DriftJob) -> Drift:
    """Compares the service's working tree, or the branch that is asked for."""
    job = drift.job
    found = Drift(name=job.service.name, where=where(job.service), version=job.version)
    try:
        with workspace(job) as scratch:
            project = job.directory
            if job.service.path and job.service.branch not in (None, checked_out(job.directory)):
                project = clone(job, clone_path(job, Path(scratch)))
            rendered = Path(scratch) / render.PREFIX / job.directory.name
            with render.prepared(job.step.old, job.step.old, "", job.directory):
                render.copy(str(job.answers["_src_path"]), rendered, job.answers, trust=job.trust)
            compare(rendered, project, drift.ownership, found)
    except render.TrustNeeded as error:
        found.problem = f"needs --trust: {error}"
    except ServiceError as error:
        found.problem = str(error)
    return found


def compare(rendered: Path, project: Path, ownership: Ownership, found: Drift) -> None:
    for file in sorted(rendered.rglob("*")):
        name = file.relative_to(rendered).as_posix()
        if not ownership.owns(name) or (file.is_dir() and not file.is_symlink()):
            continue
        own = project / name
        if not own.is_file() and not own.is_symlink():
            found.missing.append(name)
        elif lines(own) != lines(file):
            found.changed.append(name)


def lines(file: Path) -> bytes:
    """Its content, however its lines end."""
    return read_bytes(file).replace(b"\r\n", b"\n")


def patch(rendered: Path, project: Path, paths: Sequence[str], scratch: Path) -> str:
    """Return what is different in some files, as git prints it; line endings are no difference."""
    for side, directory in (("template", rendered), ("project", project)):
        (scratch / side).mkdir(parents=True)
        for name in paths:
            if (directory / name).is_file() or (directory / name).is_symlink():
                (scratch / side / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / side / name).write_bytes(lines(directory / name))
    options = ("--no-index", "--no-prefix", "--no-ext-diff", "--no-color", "--no-renames")
    done = subprocess.run(
        ["git", "diff", *options, "--", "template", "project"],
        cwd=scratch,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    return done.stdout
