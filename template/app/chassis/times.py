# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Times as SQLite keeps them, in UTC and without the zone."""

from collections.abc import Callable
from datetime import UTC, datetime, time
from typing import Annotated, Any, Final

from pydantic import AfterValidator, WithJsonSchema
from sqlalchemy import DateTime, Dialect, Time
from sqlalchemy.dialects import sqlite


class TimeError(ValueError):
    """Error for a time that cannot be kept without its offset."""


def now() -> datetime:
    """Return the time in UTC, without the zone, which SQLite does not keep."""
    return datetime.now(UTC).replace(tzinfo=None)


def in_utc(moment: datetime) -> datetime:
    """Return the same moment with the zone UTC. A time without an offset is UTC already.

    Raises:
        TimeError: In UTC it is before the year 1 or after 9999.
    """
    if moment.utcoffset() is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise TimeError("A time has to be in the years 1 to 9999 in UTC") from None


UtcTime = Annotated[
    datetime,
    AfterValidator(in_utc),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "description": "In UTC; a time with another offset is converted, one without is UTC.",
        }
    ),
]
"""Time in a request or an answer. A time from the database is UTC."""


class StoredDateTime(sqlite.DATETIME):
    """Column type that converts a time to UTC before SQLAlchemy drops its offset."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        store: Any = super().bind_processor(dialect)
        return lambda value: store(in_utc(value) if isinstance(value, datetime) else value)


class StoredTime(sqlite.TIME):
    """Column type for a time of day, which cannot be converted without its date."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        store: Any = super().bind_processor(dialect)  # type: ignore[no-untyped-call]

        def process(value: Any) -> Any:
            if isinstance(value, time) and value.tzinfo is not None and value.utcoffset():
                raise TimeError("A time of day is kept without its offset: it has to be UTC")
            return store(value)

        return process


STORED: Final[dict[type[Any], type[Any]]] = {DateTime: StoredDateTime, Time: StoredTime}
"""Types of an engine's dialect, which replace SQLAlchemy's own."""
