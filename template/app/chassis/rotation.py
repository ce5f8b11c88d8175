# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Daily copies of the database that the service makes on its volume.

A thread of one worker makes them. The worker has loaded the libraries already, SQLite does the work
without Python's lock, and a stop leaves the thread behind instead of waiting for it. Only the
worker that holds the lock on the directory makes copies. When it ends, the kernel releases the lock
for another worker.
"""

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import Field, field_validator

from app.chassis import backup
from app.chassis.checks.finding import Finding, ok, skipped, warning
from app.chassis.errors import StartupError
from app.chassis.settings import CoreSettings
from app.chassis.verdict import Degraded, Details, HealthCheck, Monitor

logger = logging.getLogger(__name__)

FIRST_LOOK: Final = 5.0
"""Seconds between a start and the first look. Until then the start has the disk to itself."""

LOOK_EVERY: Final = 30.0
"""Seconds between two looks at the clock, which may have been set meanwhile."""

RETRY: Final = 3600.0
"""Seconds until a failed copy is tried again."""

LATE: Final = timedelta(hours=26)
"""Age of the newest copy at which somebody should look."""


class RotationSettings(CoreSettings):
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

    @property
    def copy_reserve(self) -> int:
        """Return the bytes that a copy leaves free, so that it never makes /health degraded."""
        return max(self.min_free_bytes, self.low_free_bytes)


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
        made = self.newest(now)
        age = None if made is None else round((now - made).total_seconds())
        details: Details = {"age_seconds": age}
        if self.is_due(now) and self.lacks_room():
            raise Degraded("there is no room for a copy of the database", details)
        if now - (made or self.began) > LATE:
            raise Degraded("the newest copy of the database is too old", details)
        return details

    def newest(self, now: datetime) -> datetime | None:
        """Return the time of the newest copy, and ignore copies whose names have a future time."""
        found = backup.copies(self.directory, self.database)
        return next((copy.made for copy in found if copy.made <= now), None)

    def is_due(self, now: datetime) -> bool:
        made = self.newest(now)
        return made is None or made < self.settings.last_due(now)

    def lacks_room(self) -> str | None:
        """Return why the next copy does not fit, or None if it fits."""
        try:
            needed = backup.total_size(self.database) + self.settings.copy_reserve
            backup.require_room(self.database.parent, needed, "Backup")
        except StartupError as error:
            return str(error)
        except OSError:  # There is no directory yet
            return None
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
        if not self.has_turn():
            return
        backup.tidy_copies(self.directory)
        # Copies beyond a lower BACKUP_KEEP go first, because the new one may need their room
        backup.rotate(self.directory, self.database, self.settings.backup_keep)
        copy = backup.backup(
            self.database,
            self.directory,
            keep=self.settings.backup_keep,
            reserve=self.settings.copy_reserve,
        )
        logger.info("Made the copy %s", copy)

    def has_turn(self) -> bool:
        """Return whether this worker is the one of its container that makes copies."""
        if self.turn is None:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            self.turn = descriptor
        return True


def check(settings: RotationSettings) -> Iterator[Finding]:
    """Yield a finding about the age of the newest copy and the room for the next one."""
    name = "backup.newest"
    rotation, now = Rotation(settings), datetime.now(UTC)
    daily = f"daily at {settings.backup_time} UTC"
    made = rotation.newest(now)
    shown = f"no copy in {rotation.directory} yet"
    if made is not None:
        shown = f"the newest copy in {rotation.directory} is of {made:%Y-%m-%d %H:%M:%S} UTC"
    if rotation.database.exists() and (problem := rotation.lacks_room()):
        verdict, _, _ = problem.removeprefix("Backup: ").partition(";")
        yield warning(
            name,
            f"{shown}, and the next one does not fit: {verdict}",
            "grow the volume, set BACKUP_KEEP lower, or delete copies",
        )
    elif made is None:
        yield skipped(name, f"{shown}; the service makes one after its start, and {daily}")
    elif now - made > LATE:
        yield warning(
            name,
            f"{shown}; the service makes one {daily}, if it runs",
            "look for `No copy of the database was made` in its log",
        )
    else:
        yield ok(name, shown)
