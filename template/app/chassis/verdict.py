# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Results of the checks of /health, the state that workers share, and the default monitor."""

import mmap
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from app.chassis.settings import CoreSettings

Status = Literal["ok", "degraded", "failed"]
Details = Mapping[str, float | str | None]

HealthCheck = Callable[[], "Awaitable[Details | None] | Details | None"]
"""Check of /health, which returns figures to show, if any.

It raises Unhealthy when the service cannot do its work, and Degraded when it can, but somebody
should look. A plain function runs in a thread.
"""

HEALTH: Final = mmap.mmap(-1, 1024)
"""State of /health that was logged last, as text. All of it is zero if it was always well.

The workers share this memory, because gunicorn's first process makes it before it forks them.
"""


class Verdict(Exception):  # noqa: N818
    """Result of a check. Everybody sees its message and details, so they name no internals."""

    status: Status = "failed"

    def __init__(self, message: str, details: Details | None = None) -> None:
        super().__init__(message)
        self.details = details


class Unhealthy(Verdict):
    """Verdict that the service cannot do its work, so that /health is 503."""


class Degraded(Verdict):
    """Verdict that the service works but not all is well, so that /health is 200 and says so."""

    status = "degraded"


class Monitor:
    """Monitor of the second copy, one for each worker."""

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
