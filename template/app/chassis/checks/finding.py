# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Words of `check`, /health and `status` for what they find, and the state that workers share.

`check` has findings, whose `warning` is about something that may go wrong later. /health and
`status` run health checks, whose `degraded` is about the service as it runs now.
"""

import mmap
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from app.chassis.settings import CoreSettings

SHOWN: Final = 5
"""Maximum number of names in a verdict."""

FindingStatus = Literal["ok", "warning", "failed", "skipped"]


class Finding(NamedTuple):
    """Result of a check. The verdict and the advice are one line each and contain no secret."""

    id: str
    status: FindingStatus
    verdict: str
    advice: str = ""


def ok(name: str, verdict: str) -> Finding:
    return Finding(name, "ok", verdict)


def warning(name: str, verdict: str, advice: str) -> Finding:
    return Finding(name, "warning", verdict, advice)


def failed(name: str, verdict: str, advice: str) -> Finding:
    return Finding(name, "failed", verdict, advice)


def skipped(name: str, verdict: str) -> Finding:
    return Finding(name, "skipped", verdict)


def shortened(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def readable(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield findings, and a failed one in place of the rest where this user may not look."""
    try:
        yield from findings
    except PermissionError as error:
        verdict = f"{error.filename} cannot be read as uid {os.geteuid()}"
        yield failed(name, verdict, "run `check` as the service's user")


HealthStatus = Literal["ok", "degraded", "failed"]
Details = Mapping[str, float | str | None]

HealthCheck = Callable[[], "Awaitable[Details | None] | Details | None"]
"""Check of /health, which returns figures to show, if any.

It raises Unhealthy when the service cannot do its work, and Degraded when it can, but somebody
should look. A plain function runs in a thread.
"""


class HealthProblem(Exception):  # noqa: N818
    """Problem that a health check has found.

    Everybody sees its message and details, so they name no internals.
    """

    status: HealthStatus = "failed"

    def __init__(self, message: str, details: Details | None = None) -> None:
        super().__init__(message)
        self.details = details


class Unhealthy(HealthProblem):
    """Problem with which the service cannot do its work, so that /health is 503."""


class Degraded(HealthProblem):
    """Problem with which the service still works, so that /health is 200 and says so."""

    status = "degraded"


class Monitor:
    """Monitor of the second copy, one for each worker. This one has nothing to watch."""

    def __init__(self, settings: "CoreSettings") -> None:
        pass

    @property
    def health_checks(self) -> Mapping[str, HealthCheck]:
        """Return the checks that it adds to /health, by name."""
        return {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch as long as the service runs."""
        yield


HEALTH: Final = mmap.mmap(-1, 1024)
"""State of /health that was logged last, as text. All of it is zero if it was always well.

The workers share this memory, because gunicorn's first process makes it before it forks them.
"""
