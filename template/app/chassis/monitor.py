# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""What watches the second copy of the database while the service runs: by default, nothing."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from app.chassis.settings import ChassisSettings
from app.chassis.verdict import HealthCheck


class Monitor:
    """One for each worker."""

    def __init__(self, settings: ChassisSettings) -> None:
        pass

    @property
    def health_checks(self) -> Mapping[str, HealthCheck]:
        """What it adds to /health, by name."""
        return {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for as long as the service runs."""
        yield
