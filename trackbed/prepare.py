"""Preparation of jobs, which opens services, reads answers, and checks out the template."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trackbed import parallel
from trackbed.addresses import relative_hint
from trackbed.attempt import Job
from trackbed.errors import FleetError, ServiceError, unexpected
from trackbed.model import Item, Service
from trackbed.releases import recognize
from trackbed.services import find_answers, last_commit, open_repository, top, where
from trackbed.templates import Commits, Fleet, Step, Template

Result = TypeVar("Result", bound=Item)
Task = TypeVar("Task")


@dataclass(frozen=True)
class Wanted:
    """Revision of the template that is wanted.

    Attributes:
        to: the revision, or None for the last release.
        working_tree: HEAD takes changes that are not committed.
        release_only: another revision than a release is refused.
        stay: no other revision is wanted than the recorded version.
    """

    to: str | None = None
    working_tree: bool = False
    release_only: bool = False
    stay: bool = False


@dataclass(frozen=True)
class Opened:
    """Service whose answers are read, and the commit that it is at, or why there is none."""

    service: Service
    directory: Path
    commit: str | ServiceError
    answers_file: str
    answers: dict[str, Any]


def in_each(
    fleet: Fleet,
    wanted: Wanted,
    make: Callable[[Job], Task],
    function: Callable[[Task], Result],
    kind: type[Result],
    label: str,
    seconds: float = parallel.SECONDS,
) -> list[Result]:
    """Run a function for each service that can be opened. The others get the reason as a problem.

    A job that takes more seconds than it has is ended.
    """
    with workspace() as directory:
        prepared = prepare(fleet, wanted, directory)
        ready = [number for number, job in enumerate(prepared) if isinstance(job, Job)]
        tasks = [make(job) for job in prepared if isinstance(job, Job)]
        results = parallel.run(function, tasks, processes=fleet.jobs, label=label, seconds=seconds)
    done: dict[int, Result | ServiceError] = dict(zip(ready, results, strict=True))
    items = []
    for number, (service, job) in enumerate(zip(fleet.services, prepared, strict=True)):
        result = done.get(number, job)
        if isinstance(result, kind):
            items.append(result)
        else:
            items.append(kind(name=service.name, where=where(service), problem=str(result)))
    return items


@contextmanager
def workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="trackbed-fleet-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def prepare(fleet: Fleet, wanted: Wanted, directory: Path) -> list[Job | ServiceError]:
    commits = Commits(
        directory,
        fleet.template,
        working_tree=wanted.working_tree,
        release_only=wanted.release_only,
    )
    if fleet.template and not wanted.stay:
        commits.require_target(wanted.to)
    with ThreadPoolExecutor(fleet.jobs) as pool:
        opened = list(pool.map(partial(read, template=fleet.template), fleet.services))
    commits.sources.find_all(
        (str(found.answers["_src_path"]), found.directory)
        for found in opened
        if isinstance(found, Opened) and found.answers.get("_src_path")
    )
    return [
        found if isinstance(found, ServiceError) else prepare_one(fleet, commits, found, wanted)
        for found in opened
    ]


def prepare_one(
    fleet: Fleet, commits: Commits, found: Opened, wanted: Wanted
) -> Job | ServiceError:
    try:
        step = find_step(commits, found.directory, found.answers, wanted)
        recorded = str(found.answers["_commit"])
        return Job(
            service=found.service,
            directory=found.directory,
            top=top(found.directory),
            answers=found.answers,
            version=recognize(recorded, ()).version or recorded,
            step=step,
            trust=fleet.trust and step.own,
            workspace=commits.directory,
            commit=found.commit,
            answers_file=found.answers_file,
        )
    except ServiceError as error:
        return error
    except FleetError:
        raise
    except Exception as error:  # One service never stops the others
        return unexpected(error)


def read(service: Service, template: Template | None) -> Opened | ServiceError:
    def ours(address: str, base: Path) -> bool:
        return template is not None and template.named(address, base)

    try:
        repository = open_repository(service)
        name, answers = find_answers(service, repository, ours)
        return Opened(service, repository, commit_or_reason(service, repository), name, answers)
    except ServiceError as error:
        return error
    except Exception as error:  # One service never stops the others
        return unexpected(error)


def commit_or_reason(service: Service, repository: Path) -> str | ServiceError:
    try:
        return last_commit(service, repository)
    except ServiceError as error:
        return error


def find_step(commits: Commits, repository: Path, answers: dict[str, Any], wanted: Wanted) -> Step:
    """Return the recorded and the wanted commit, both checked out. Raises ServiceError."""
    for key in ("_src_path", "_commit"):
        if not answers.get(key):
            raise ServiceError(f"the answers file has no {key}")
    source, recorded = str(answers["_src_path"]), str(answers["_commit"])
    try:
        if wanted.stay:
            return commits.current(source, repository, recorded)
        return commits.step(source, repository, recorded, wanted.to)
    except ServiceError as error:
        raise ServiceError(f"{error}{relative_hint(source)}") from None
