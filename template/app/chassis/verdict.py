# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""What a check of /health may say besides that all is well."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

Status = Literal["ok", "degraded", "failed"]
Details = Mapping[str, float | str | None]

HealthCheck = Callable[[], "Awaitable[Details | None] | Details | None"]
"""Returns figures to show, if any. Raises Unhealthy when the service cannot do its work, and
Degraded when it can, but somebody should look. A plain function runs in a thread."""


class Verdict(Exception):  # noqa: N818
    """The message and the details are shown to whoever asks, so they name no internals."""

    status: Status = "failed"

    def __init__(self, message: str, details: Details | None = None) -> None:
        super().__init__(message)
        self.details = details


class Unhealthy(Verdict):
    """The service cannot do its work: /health is 503."""


class Degraded(Verdict):
    """The service does its work, but not all is well: /health is 200 and says so."""

    status = "degraded"
