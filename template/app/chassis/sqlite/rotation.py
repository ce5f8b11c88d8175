# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Daily copies of the database that the service makes on its volume.

A thread of one worker makes them. The worker has loaded the libraries already, SQLite does the work
without Python's lock, and a stop leaves the thread behind instead of waiting for it. Only the
worker that holds the lock on the directory makes copies. When it ends, the kernel releases the lock
for another worker.
"""

import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import Field, field_validator

from app.chassis.checks.finding import (
    Degraded,
    Details,
    Finding,
    HealthCheck,
    Monitor,
    ok,
    skipped,
    warning,
)
from app.chassis.errors import StartupError
from app.chassis.sqlite import backup, volume
from app.chassis.sqlite.settings import SQLiteSettings

logger = logging.getLogger(__name__)

FIRST_LOOK: Final = 5.0
"""Seconds between a start and the first look. Until then the start has the disk to itself."""

LOOK_EVERY: Final = 30.0
"""Seconds between two looks at the clock, which may have been set meanwhile."""

RETRY: Final = 3600.0
"""Seconds until a failed copy is tried again."""

LATE: Final = timedelta(hours=26)
"""Age of the newest copy at which somebody should look."""


class RotationSettings(SQLiteSettings):
    """Settings for the time of the service's copies, and for how many of them stay."""

    backup_time: str = Field(
        default="03:00",
        description="When the service copies its database, every day: a time in UTC",
    )
    backup_keep: int = Field(
        default=7, ge=1, description="How many of its copies stay on the volume"
    )

    @field_validator("backup_time")
    @classmethod
    def time_is_of_a_day(cls, value: str) -> str:
        if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value):
            raise ValueError("must be a time of day in UTC, such as 03:00")
        return value

    def last_due(self, now: datetime) -> datetime:
        """Return the last moment, in UTC, at which a copy had to be made."""
        hour, minute = map(int, self.backup_time.split(":"))
        today = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return today if today <= now else today - timedelta(days=1)


class Rotation(Monitor):
    """Monitor that makes a copy every day at BACKUP_TIME, and keeps BACKUP_KEEP copies.

    It also makes one after a start, if there is no copy since the last BACKUP_TIME. It does not
    make one for each start. Otherwise a container that starts again and again would soon have
    pushed out every older copy.
    """

    def __init__(self, settings: RotationSettings) -> None:
        self.settings = settings
        self.database = settings.database_path
        self.directory = backup.backups_directory(self.database)
        self.began = datetime.now(UTC)
        self.turn: int | None = None
        self.retry_at = 0.0
        self.ended = threading.Event()

    @property
    def health_checks(self) -> Mapping[str, HealthCheck]:
        return {"copies": self.copies}

    def copies(self) -> Details:
        """Return how old the newest copy is.

        Raises:
            Degraded: It is too old, or there is no room for the next one.
        """
        now = datetime.now(UTC)
        copy = backup.newest(self.database, now)
        age = None if copy is None else round((now - copy.made).total_seconds())
        details: Details = {"age_seconds": age}
        if self.is_due(now) and self.shortage():
            raise Degraded("there is no room for a copy of the database", details)
        if now - (copy.made if copy else self.began) > LATE:
            raise Degraded("the newest copy of the database is too old", details)
        return details

    def is_due(self, now: datetime) -> bool:
        copy = backup.newest(self.database, now)
        return copy is None or copy.made < self.settings.last_due(now)

    def shortage(self) -> str | None:
        """Return why the next copy does not fit, or None if it fits."""
        with suppress(OSError):  # There is no directory yet
            needed = backup.total_size(self.database) + self.settings.wanted_free_bytes
            return backup.shortage(self.database.parent, needed)
        return None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        threading.Thread(target=self.watch, name="copies", daemon=True).start()
        try:
            yield
        finally:
            self.ended.set()

    def watch(self) -> None:
        pause = FIRST_LOOK
        while not self.ended.wait(pause):
            pause = LOOK_EVERY
            try:
                self.look()
            except Exception as error:
                self.retry_at = time.monotonic() + RETRY
                expected = isinstance(error, StartupError | OSError)
                logger.error(
                    "No copy of the database was made, the next attempt is in an hour: %s",
                    error,
                    exc_info=None if expected else error,
                )
        if self.turn is not None:
            os.close(self.turn)

    def look(self) -> None:
        """Make a copy if one is due and it is this worker's turn.

        Raises:
            StartupError: The copy could not be made (see backup).
            OSError: The directory could not be made or read.
        """
        if time.monotonic() < self.retry_at or not self.is_due(datetime.now(UTC)):
            return
        self.directory.mkdir(mode=0o700, exist_ok=True)
        # The worker that holds this lock is the one of its container that makes copies
        if self.turn is None:
            self.turn = volume.try_lock(self.directory)
        if self.turn is None:
            return
        backup.tidy_copies(self.directory)
        # Copies beyond a lower BACKUP_KEEP go first, because the new one may need their room
        backup.rotate(self.directory, self.database, self.settings.backup_keep)
        copy = backup.backup(
            self.database,
            self.directory,
            keep=self.settings.backup_keep,
            reserve=self.settings.wanted_free_bytes,
        )
        logger.info("Made the copy %s", copy)


def check(settings: RotationSettings) -> Iterator[Finding]:
    """Yield a finding about the age of the newest copy and the room for the next one."""
    name = "backup.newest"
    rotation, now = Rotation(settings), datetime.now(UTC)
    daily = f"daily at {settings.backup_time} UTC"
    copy = backup.newest(rotation.database, now)
    shown = f"no copy in {rotation.directory} yet"
    if copy is not None:
        shown = f"the newest copy in {rotation.directory} is of {copy.made:%Y-%m-%d %H:%M:%S} UTC"
    if rotation.database.exists() and (short := rotation.shortage()):
        yield warning(
            name,
            f"{shown}, and the next one does not fit: {short}",
            "grow the volume, set BACKUP_KEEP lower, or delete copies",
        )
    elif copy is None:
        yield skipped(name, f"{shown}; the service makes one after its start, and {daily}")
    elif now - copy.made > LATE:
        yield warning(
            name,
            f"{shown}; the service makes one {daily}, if it runs",
            "look for `No copy of the database was made` in its log",
        )
    else:
        yield ok(name, shown)
