"""Updates of services, each on a new branch and made in a clone, so a failure leaves nothing."""

import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from trackbed import bounded
from trackbed.attempt import Job, clone, clone_path, try_update, uncommitted, workspace
from trackbed.errors import FleetError, ServiceError
from trackbed.files import read_within
from trackbed.git import at, commit_of, git, of_its_own, own_path, own_settings, tip
from trackbed.model import Service, Update
from trackbed.services import committed_answers, where

TAIL = 20
WIDTH = 500
LOCK = "uv.lock"
LOCK_SIZE = 64 * bounded.MEGABYTE
TEST_SECONDS = 1800
TEST_MEMORY = 4096 * bounded.MEGABYTE
"""Maximum bytes that each process of the tests allocates."""
TEST_OUTPUT = bounded.MEGABYTE

HARMLESS = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|TZ|LANG|LANGUAGE|LC_\w+|TMPDIR|TEMP|TMP|SYSTEMROOT"
    r"|XDG_(CACHE|CONFIG|DATA|STATE|RUNTIME)_(HOME|DIR)|PYTHON(UTF8|DONTWRITEBYTECODE)|CI"
    r"|UV_(CACHE_DIR|PYTHON\w*|LINK_MODE|OFFLINE|NO_\w+|CONCURRENT_\w+|SYSTEM_CERTS|NATIVE_TLS)"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|(NO_PROXY|no_proxy)|NO_COLOR|COLUMNS"
)
"""Variables that the tests of a service get."""
ADDRESS = re.compile(
    r"(HTTPS?|ALL)_PROXY|(https?|all)_proxy|(UV|PIP)_((DEFAULT|EXTRA)_)?INDEX(_URL)?"
)
"""Variables that they also get if no user and no password is in them."""


@dataclass(frozen=True)
class UpdateJob:
    job: Job
    branch: str
    test: str | None


class TestsFailed(ServiceError):
    def __init__(self, message: str, output: list[str]) -> None:
        super().__init__(message)
        self.output = output


def branch_name(job: Job) -> str:
    """Return the branch's name, with the service's path if the repository can have several."""
    name = f"template-{job.step.name}"
    if not job.inside.parts:
        return name
    inside = job.inside.as_posix()
    part = re.sub(r"\W+", "-", inside, flags=re.ASCII).strip("-")
    if part == inside.lower().replace("/", "-") and "-" not in inside:
        return f"{name}-{part}"
    # Another directory may give the same text, so a hash is added
    return f"{name}-{part}-{sha256(os.fsencode(inside)).hexdigest()[:6]}"


def check_test(command: str) -> None:
    """Refuse a text that is no command. Raises FleetError."""
    try:
        if not shlex.split(command):
            raise FleetError("--test: there is no command")
    except ValueError as error:
        raise FleetError(f"--test: {error}") from None


def update(order: UpdateJob) -> Update:
    """Make the branch, or return why that is not possible."""
    job = order.job
    done = Update(
        name=job.service.name,
        where=where(job.service),
        version=job.version,
        target=job.step.name,
        repository=str(job.top),
    )
    try:
        if already(order, done):
            return done
        if uncommitted(job):
            raise ServiceError("it has changes that are not committed")
    except ServiceError as error:
        done.outcome, done.problem = "refused", str(error)
        return done
    try:
        with workspace(job) as scratch:
            make_branch(order, Path(scratch), done)
    except TestsFailed as error:
        done.problem, done.output = str(error), error.output
    except ServiceError as error:
        done.problem = str(error)
    return done


def already(order: UpdateJob, done: Update) -> bool:
    """Return whether an earlier run has made the branch.

    Raises:
        ServiceError: there is a branch of that name with something else.
    """
    job = order.job
    try:
        commit = tip(job.top, order.branch)
    except ServiceError:
        return False
    found = Service(job.service.name, str(job.directory), None, order.branch)
    with suppress(ServiceError):
        answers = committed_answers(found, job.directory, None, only=job.answers_file)[1]
        if str(answers.get("_commit")) in (job.step.name, job.step.name.removeprefix("v")):
            done.outcome, done.branch, done.commit = "current", order.branch, commit
            return True
    raise ServiceError(
        f"it has a branch {order.branch} already, which is no update to {job.step.name}"
    )


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
    here = at(repository)
    git(repository, *here, "add", "--all")
    record(job, repository, "--message", f"Update the template to {job.step.name}")
    if order.test:
        lock = run_tests(order, repository, scratch)
        if lock is not None:
            (project / LOCK).write_bytes(lock)
            git(project, *here, "add", "--", project / LOCK)
            record(job, repository, "--amend", "--no-edit")
    commit = commit_of(repository, "HEAD")
    if commit is None:
        raise ServiceError("the update left no commit")
    deliver(job, repository, commit, order.branch, scratch)
    done.outcome, done.branch, done.commit = "updated", order.branch, commit


def deliver(job: Job, repository: Path, commit: str, branch: str, scratch: Path) -> None:
    """Put a commit and its branch, and nothing else, into the service's own repository.

    The service's settings are not read when the objects go there and the commit gets its name.
    """
    wanted = scratch / "wanted"
    wanted.write_text(f"{commit}\n^{job.commit}\n", encoding="ascii")
    pack = scratch / "delivered"
    name = git(repository, *at(repository), "pack-objects", "--revs", "--quiet", pack, stdin=wanted)
    git(
        repository,
        *at(repository),
        "unpack-objects",
        "-q",
        env={"GIT_OBJECT_DIRECTORY": str(own_path(job.top, "objects"))},
        stdin=scratch / f"delivered-{name.strip()}.pack",
    )
    of_its_own(job.top, "update-ref", f"refs/heads/{branch}", commit, "0" * len(commit))


def record(job: Job, repository: Path, *options: str) -> None:
    """Commit as the person who commits in the service's repository."""
    own = own_settings(job.top)
    env = {
        f"GIT_{who}_{variable}": own[key]
        for key, variable in (("user.name", "NAME"), ("user.email", "EMAIL"))
        for who in ("AUTHOR", "COMMITTER")
        if key in own and f"GIT_{who}_{variable}" not in os.environ
    }
    git(repository, *at(repository), "commit", "--quiet", "--no-verify", *options, env=env)


def run_tests(order: UpdateJob, repository: Path, scratch: Path) -> bytes | None:
    """Run the service's tests in a clone of their own, so that their changes to git are lost.

    Returns:
        uv.lock, if the tests have renewed it, as `uv run` does for new dependencies.

    Raises:
        TestsFailed: they failed. The error has the last lines that they print.
    """
    job = order.job
    trial = scratch / "trial" / repository.name
    git(None, "clone", "--quiet", "--shared", "--", repository, trial)
    project = trial / job.inside
    before = read_lock(project)
    try:
        with bounded.limited(memory=TEST_MEMORY):
            done = bounded.run(
                shlex.split(order.test or ""),
                cwd=project,
                env=environment(),
                seconds=TEST_SECONDS,
                output=TEST_OUTPUT,
                merged=True,
                tail=True,
            )
    except bounded.Exceeded as error:
        raise TestsFailed(f"the tests {error}", []) from None
    except (OSError, ValueError) as error:
        raise ServiceError(f"the tests cannot be run: {error}") from None
    finally:
        bounded.kill_children()
    if done.code:
        text = done.out.decode("utf-8", "replace")
        output = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-TAIL:]
        said = f": {output[-1].strip()[:WIDTH]}" if output else ""
        raise TestsFailed(f"the tests failed with code {done.code}{said}", output)
    after = read_lock(project)
    return after if before is not None and after != before else None


def read_lock(project: Path) -> bytes | None:
    try:
        return read_within(project, Path(LOCK), LOCK_SIZE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{LOCK}: {error.strerror}") from None


def environment() -> dict[str, str]:
    """Return the variables for a service's tests, without those that may hold a secret."""
    return {
        name: value
        for name, value in os.environ.items()
        if HARMLESS.fullmatch(name) or (ADDRESS.fullmatch(name) and "@" not in value)
    }
