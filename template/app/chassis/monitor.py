# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Monitor of the database's second copy. This default one watches nothing."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from app.chassis.settings import ChassisSettings
from app.chassis.verdict import HealthCheck


class Monitor:
    """Monitor of the second copy, one for each worker."""

    def __init__(self, settings: ChassisSettings) -> None:
        pass

    @property
    def health_checks(self) -> Mapping[str, HealthCheck]:
        """Return the checks that it adds to /health, by name."""
        return {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch as long as the service runs."""
        yield
