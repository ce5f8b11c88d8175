# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Times as SQLite keeps them: in UTC, without the zone."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator


def now() -> datetime:
    """The time in UTC, without the zone, which SQLite does not keep."""
    return datetime.now(UTC).replace(tzinfo=None)


UtcTime = Annotated[datetime, AfterValidator(lambda time: time.replace(tzinfo=UTC))]
"""A stored time in an answer: with the zone that SQLite has not kept."""
