"""Update services, each on a new branch. The work is done in clones: a failure leaves nothing."""

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from trackbed.attempt import Job, clone, clone_path, try_update, workspace
from trackbed.errors import FleetError, ServiceError
from trackbed.git import commit_of, git
from trackbed.model import Update
from trackbed.services import where

TAIL = 20


@dataclass(frozen=True)
class UpdateJob:
    job: Job
    branch: str
    test: str | None


class TestsFailed(ServiceError):
    def __init__(self, message: str, output: list[str]) -> None:
        super().__init__(message)
        self.output = output


def branch_name(release: str) -> str:
    return f"template-{release}"


def check_test(command: str) -> None:
    """Raises FleetError: it is no command."""
    try:
        if not shlex.split(command):
            raise FleetError("--test: there is no command")
    except ValueError as error:
        raise FleetError(f"--test: {error}") from None


def update(order: UpdateJob) -> Update:
    """Make the branch, or say why not."""
    job = order.job
    done = Update(
        name=job.service.name,
        where=where(job.service),
        version=job.version,
        target=job.step.name,
        repository=str(job.top),
    )
    if reason := refusal(job.top, order.branch):
        done.outcome, done.problem = "refused", reason
        return done
    try:
        with workspace(job) as scratch:
            make_branch(order, Path(scratch), done)
    except TestsFailed as error:
        done.problem, done.output = str(error), error.output
    except ServiceError as error:
        done.problem = str(error)
    return done


def refusal(repository: Path, branch: str) -> str | None:
    try:
        if git(repository, "status", "--porcelain").strip():
            return "it has changes that are not committed"
        if commit_of(repository, f"refs/heads/{branch}"):
            return f"it has a branch {branch} already"
    except ServiceError as error:
        return str(error)
    return None


def make_branch(order: UpdateJob, scratch: Path, done: Update) -> None:
    job = order.job
    repository = clone_path(job, scratch)
    project = clone(job, repository)
    attempt = try_update(job, project, scratch)
    done.changed = attempt.changed
    if attempt.trust:
        raise ServiceError(f"needs --trust: {attempt.trust}")
    if attempt.conflicts:
        raise ServiceError(f"conflicts in {', '.join(attempt.conflicts)}")
    if attempt.lost:
        raise ServiceError(f"edits lost in {', '.join(loss.path for loss in attempt.lost)}")
    if not attempt.changed:
        done.outcome = "current"
        return
    git(repository, "add", "--all")
    record(job, repository, "--message", f"Update the template to {job.step.name}")
    if order.test:
        run_tests(order.test, project)
        keep_lock(job, repository, project)
    commit = commit_of(repository, "HEAD")
    # only now, and only this, in the service's own repository
    refspec = f"HEAD:refs/heads/{order.branch}"
    git(job.top, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(repository), refspec)
    done.outcome, done.branch, done.commit = "updated", order.branch, commit


def record(job: Job, repository: Path, *options: str) -> None:
    """Commit as whoever commits in the service's repository."""
    env: dict[str, str] = {}
    for key, variable in (("user.name", "NAME"), ("user.email", "EMAIL")):
        try:
            value = git(job.top, "config", key).strip()
        except ServiceError:
            continue
        env |= {
            f"GIT_{who}_{variable}": value
            for who in ("AUTHOR", "COMMITTER")
            if f"GIT_{who}_{variable}" not in os.environ
        }
    git(repository, "commit", "--quiet", "--no-verify", *options, env=env)


def run_tests(command: str, project: Path) -> None:
    """Raises TestsFailed with the last lines of what they print."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    try:
        done = subprocess.run(
            shlex.split(command),
            cwd=project,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise ServiceError(f"the tests cannot be run: {error}") from None
    if done.returncode:
        output = [line for line in done.stdout.splitlines() if line.strip()][-TAIL:]
        said = f": {output[-1].strip()}" if output else ""
        raise TestsFailed(f"the tests failed with code {done.returncode}{said}", output)


def keep_lock(job: Job, repository: Path, project: Path) -> None:
    """A lock that the tests have renewed, as `uv run` does for new dependencies, goes along."""
    lock = project / "uv.lock"
    if lock.is_file() and git(project, "status", "--porcelain", "-uno", "uv.lock").strip():
        git(project, "add", "uv.lock")
        record(job, repository, "--amend", "--no-edit")
