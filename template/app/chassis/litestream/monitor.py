# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Monitor that reports in /health and in the log whether the bucket takes every change."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

import anyio
import anyio.to_thread

from app.chassis.checks.finding import Degraded, Details, HealthCheck, Monitor
from app.chassis.litestream.control import BucketWaitError, ControlError, confirm, confirmed_at
from app.chassis.litestream.settings import LitestreamSettings

logger = logging.getLogger(__name__)

PROBE_INTERVAL: Final = 10.0
"""Seconds between two attempts to have the bucket confirm everything."""

PROBE_TIMEOUT: Final = 3
"""Seconds that a confirmation may take. A healthy bucket needs a few hundredths."""

REMIND_AFTER: Final = 30
"""Number of failed attempts between two lines in the log, which is five minutes."""


class LitestreamMonitor(Monitor):
    """Monitor of the bucket's copy."""

    def __init__(self, settings: LitestreamSettings) -> None:
        self.settings = settings
        self.errors = 0

    @property
    def health_checks(self) -> Mapping[str, HealthCheck]:
        return {"replication": self.replication} if self.settings.replicated else {}

    def replication(self) -> Details:
        """Return how long ago the bucket had everything, and how often it has failed since.

        Raises:
            Degraded: It was longer ago than LITESTREAM_MAX_AGE, or it was never and an attempt
                has failed, or Litestream does not answer.
        """
        try:
            moment = confirmed_at(self.settings.control_socket, self.settings.database_path)
        except BucketWaitError as error:
            raise Degraded(str(error), self.details(None)) from error
        except ControlError as error:
            raise Degraded("Litestream does not answer", self.details(None)) from error
        age = None if moment is None else max(0, (datetime.now(UTC) - moment).total_seconds())
        details = self.details(age)
        if age is None and self.errors:
            raise Degraded("the bucket has not taken any change yet", details)
        if age is not None and age > self.settings.litestream_max_age:
            raise Degraded("the bucket does not take the newest changes", details)
        return details

    def details(self, age: float | None) -> Details:
        return {"age_seconds": age if age is None else round(age, 1), "errors": self.errors}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        if not self.settings.replicated:
            yield
            return
        async with anyio.create_task_group() as group:
            group.start_soon(self.watch)
            yield
            group.cancel_scope.cancel()

    async def watch(self) -> None:
        while True:
            await anyio.to_thread.run_sync(self.probe, abandon_on_cancel=True)
            await anyio.sleep(PROBE_INTERVAL)

    def probe(self) -> None:
        """Have the bucket confirm every change, and count and log its failures."""
        try:
            confirm(self.settings.control_socket, self.settings.database_path, PROBE_TIMEOUT)
        except ControlError as error:
            self.errors += 1
            if self.errors % REMIND_AFTER == 1:
                logger.warning("Replication: the bucket has not taken every change: %s", error)
            return
        if self.errors:
            logger.info("Replication: the bucket has every change again")
        self.errors = 0
