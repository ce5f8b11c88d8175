# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Times as a database keeps them, in UTC and without the zone."""

from collections.abc import Callable
from datetime import UTC, datetime, time
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from sqlalchemy import DateTime, Dialect, Time


class TimeError(ValueError):
    """Error for a time that cannot be kept without its offset."""


def now() -> datetime:
    """Return the time in UTC, without the zone, which columns do not keep."""
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


def moment(value: Any, zone: bool) -> Any:
    """Return a moment in UTC, with the zone only if the column keeps it."""
    if not isinstance(value, datetime):
        return value
    return in_utc(value) if zone else in_utc(value).replace(tzinfo=None)


def time_of_day(value: Any, zone: bool) -> Any:
    """Return a time of day, which cannot be converted without its date.

    Raises:
        TimeError: It has another offset than UTC.
    """
    if not isinstance(value, time) or value.tzinfo is None:
        return value
    if value.utcoffset():
        raise TimeError("A time of day is kept without its offset: it has to be UTC")
    return value if zone else value.replace(tzinfo=None)


def keep_in_utc(dialect: Dialect) -> None:
    """Have an engine's dialect convert each time to UTC before it drops the offset."""
    specs: Any = dialect.colspecs
    dialect.colspecs = {
        **specs,
        DateTime: converted(specs[DateTime], moment),
        Time: converted(specs[Time], time_of_day),
    }


@cache
def converted(kind: Any, convert: Callable[[Any, bool], Any]) -> Any:
    """Return a dialect's column type, with a conversion of each value that it stores."""

    class Converted(kind):  # type: ignore[misc]
        def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
            store = super().bind_processor(dialect) or (lambda value: value)
            return lambda value: store(convert(value, self.timezone))

    return Converted
