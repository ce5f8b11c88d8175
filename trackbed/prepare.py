"""From services to jobs: open each, read its answers, and check out the template's commits."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trackbed import parallel
from trackbed.attempt import Job
from trackbed.errors import ServiceError
from trackbed.model import Item, Service
from trackbed.releases import recognize
from trackbed.services import open_repository, read_answers, top, where
from trackbed.templates import Commits, Fleet, Step, relative_hint

Result = TypeVar("Result", bound=Item)
Task = TypeVar("Task")


@dataclass(frozen=True)
class Wanted:
    """To which revision of the template.

    Attributes:
        to: None is the last release.
        working_tree: HEAD takes changes that are not committed.
        release_only: another revision than a release is refused.
        stay: none, the recorded version only.
    """

    to: str | None = None
    working_tree: bool = False
    release_only: bool = False
    stay: bool = False


def in_each(
    fleet: Fleet,
    wanted: Wanted,
    make: Callable[[Job], Task],
    function: Callable[[Task], Result],
    kind: type[Result],
    label: str,
) -> list[Result]:
    """Do something with each service that can be opened; the others get their reason."""
    with workspace() as directory:
        prepared = prepare(fleet, wanted, directory)
        ready = [number for number, job in enumerate(prepared) if isinstance(job, Job)]
        tasks = [make(job) for job in prepared if isinstance(job, Job)]
        results = parallel.run(function, tasks, processes=fleet.jobs, label=label)
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
        opened = list(pool.map(read, fleet.services))
    prepared: list[Job | ServiceError] = []
    for service, found in zip(fleet.services, opened, strict=True):
        if isinstance(found, ServiceError):
            prepared.append(found)
            continue
        repository, answers = found
        try:
            step = find_step(commits, repository, answers, wanted)
            version = recognize(answers["_commit"], ()).version
            prepared.append(
                Job(
                    service=service,
                    directory=repository,
                    top=top(repository),
                    answers=answers,
                    version=version or str(answers["_commit"]),
                    step=step,
                    trust=fleet.trust,
                    workspace=directory,
                )
            )
        except ServiceError as error:
            prepared.append(error)
    return prepared


def read(service: Service) -> tuple[Path, dict[str, Any]] | ServiceError:
    try:
        repository = open_repository(service)
        return repository, read_answers(service, repository)
    except ServiceError as error:
        return error


def find_step(commits: Commits, repository: Path, answers: dict[str, Any], wanted: Wanted) -> Step:
    """Raises ServiceError."""
    for key in ("_src_path", "_commit"):
        if not answers.get(key):
            raise ServiceError(f"the answers file has no {key}")
    source, recorded = str(answers["_src_path"]), str(answers["_commit"])
    try:
        if wanted.stay:
            current = commits.current(source, repository, recorded)
            return Step(current, current, "", recorded)
        return commits.step(source, repository, recorded, wanted.to)
    except ServiceError as error:
        raise ServiceError(f"{error}{relative_hint(source)}") from None
