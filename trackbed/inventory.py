"""Inventory of the services' versions of the template. It only reads files of local services."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from trackbed.addresses import relative_hint, shown
from trackbed.errors import ServiceError, unexpected
from trackbed.model import Inventory, Service
from trackbed.releases import as_version, behind, final, recognize
from trackbed.services import find_answers, open_repository, where
from trackbed.templates import Catalogue


def take(services: Sequence[Service], catalogue: Catalogue, jobs: int) -> list[Inventory]:
    """Return one entry for each service, in their order."""
    read_one = partial(attempt_read, catalogue=catalogue)
    files = [service for service in services if not (service.url or service.branch)]
    others = [service for service in services if service.url or service.branch]
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        asked = dict(zip(others, pool.map(read_one, others), strict=True))
    read = {**{service: read_one(service) for service in files}, **asked}
    catalogue.look_up(
        (str(answers["_src_path"]), directory)
        for directory, answers in filter(is_read, read.values())
        if answers.get("_src_path")
    )
    today = datetime.now(UTC).date()
    return [attempt(service, read[service], catalogue, today) for service in services]


Read = tuple[Path, dict[str, Any]] | ServiceError


def is_read(read: Read) -> TypeGuard[tuple[Path, dict[str, Any]]]:
    return not isinstance(read, ServiceError)


def attempt_read(service: Service, catalogue: Catalogue) -> Read:
    try:
        directory = open_repository(service)
        return directory, find_answers(service, directory, catalogue.ours)[1]
    except ServiceError as error:
        return error
    except Exception as error:  # One service never stops the others
        return unexpected(error)


def attempt(service: Service, read: Read, catalogue: Catalogue, today: date) -> Inventory:
    try:
        return describe(service, read, catalogue, today)
    except Exception as error:  # One service never stops the others
        problem = str(unexpected(error))
        return Inventory(name=service.name, where=where(service), problem=problem)


def describe(service: Service, read: Read, catalogue: Catalogue, today: date) -> Inventory:
    entry = partial(Inventory, name=service.name, where=where(service))
    if isinstance(read, ServiceError):
        return entry(problem=str(read))
    directory, answers = read
    source = answers.get("_src_path")
    known = {key: value for key, value in answers.items() if not key.startswith("_")}
    recorded = answers.get("_commit")
    item = entry(
        template=shown(str(source)) if source else None,
        recorded=None if recorded is None else str(recorded),
        answers=known,
    )
    if not source:
        item.problem = "the answers file names no template: no _src_path"
        return item
    try:
        releases = catalogue.releases(str(source), directory)
    except ServiceError as error:
        releases, item.unknown = [], str(error)
    found = recognize(recorded, releases)
    item.version, item.distance = found.version, found.distance
    if reason := item.unknown or found.unknown:
        item.unknown = f"{reason}{relative_hint(str(source))}"
    item.behind = behind(found, releases)
    if final(releases):
        item.newest = final(releases)[-1].version
    if found.release:
        item.released = found.release.date
        item.age_days = max(0, (today - found.release.date).days)
    return item


def comparable(item: Inventory) -> str | None:
    """Return the version as PEP 440 writes it. Commits after a release are a post-release."""
    if item.unknown or item.version is None or as_version(item.version) is None:
        return None  # A service may write any version there, and nobody has seen such a release
    return f"{item.version}.post{item.distance}" if item.distance else item.version
