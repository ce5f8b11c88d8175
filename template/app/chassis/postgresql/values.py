# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Values on their way from one database to another, for `python -m app move`.

SQLite keeps what it is given, whatever the column says, so each value is read strictly. It has to
be of the column's type, and has to fit into the column that the target's revisions have made.
"""

import json
import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Column, Dialect, types
from sqlalchemy.types import TypeDecorator, TypeEngine

from app.chassis.times import TimeError, in_utc

Step: TypeAlias = Callable[[Any], Any]
"""Function that returns a value in its next form, or raises UnfitError."""


def given(value: Any) -> Any:
    return value


class UnfitError(ValueError):
    """Error for a value that cannot be moved. It says why, and never repeats the value."""


class Field(NamedTuple):
    """Column of a table on its way, with the forms that a value of it takes.

    A raw value is what the driver gives, and `read` makes a Python value of it. `fit` refuses one
    that the target cannot keep, `write` returns what the target's driver takes, and `same` returns
    a form that is equal on both sides.
    """

    name: str
    as_text: bool
    read: Step
    reread: Step
    fit: Step
    write: Step
    same: Step

    def move(self, raw: Any) -> tuple[Any, Any]:
        """Return what the target's driver takes, and the form to compare.

        Raises:
            UnfitError: The value cannot be moved.
        """
        try:
            value = self.read(raw)
            self.fit(value)
            return self.write(value), self.same(value)
        except UnfitError:
            raise
        except TimeError as error:
            raise UnfitError(str(error)[:1].lower() + str(error)[1:]) from None
        except Exception:
            # A decorated type runs code of the service, and a message may repeat the value
            raise UnfitError("is no value of the column's type") from None


RAW: Final[dict[type[TypeEngine[Any]], tuple[type, ...]]] = {
    types.Boolean: (int,),
    types.Integer: (int,),
    types.Numeric: (int, float),
    types.Float: (int, float),
    types.String: (str,),
    types.LargeBinary: (bytes,),
    types.DateTime: (str,),
    types.Date: (str,),
    types.Time: (str,),
    types.Uuid: (str,),
}
"""Types of the values that SQLite keeps for a column of the service."""

KINDS: Final = {int: "a whole number", float: "a number", str: "text", bytes: "bytes"}

SMALL: Final = 15
"""Digits that every decimal number keeps as the floating-point number that SQLite stores."""


def make_field(
    column: Column[Any], source: Dialect, target: Dialect, kept: TypeEngine[Any], *, null: bool
) -> Field:
    """Return the steps for a column.

    Args:
        column: The column of the model.
        source: Dialect of the database that is read.
        target: Dialect of the database that is written.
        kept: Type of the column in the target, as it is there.
        null: True if the column in the target may be empty.
    """
    here, there = plain_types(column.type, source, target)
    if isinstance(here, types.JSON) and isinstance(there, types.JSON):
        # As text, because only there an empty value is not the same as JSON's null
        as_text, write = True, given_or_none(given)
        read = reread = given_or_none(json_text)
        same = given_or_none(lambda raw: json.dumps(loads(raw), sort_keys=True))
    else:
        as_text, write = False, writer(there, target)
        read, reread = reader(here, source), reader(there, target)
        same = comparer(here, there, target, kept)
    checks: list[Step] = [] if null else [filled]
    checks += limits(there, target, kept)

    def fit(value: Any) -> None:
        for check in checks:
            check(value)

    return Field(column.name, as_text, read, reread, fit, write, same)


def plain_types(
    kind: TypeEngine[Any], source: Dialect, target: Dialect
) -> tuple[TypeEngine[Any], TypeEngine[Any]]:
    """Return the column's type in both databases.

    A decorated type that both keep in the same way is taken off, because what it does with a
    value, such as to encrypt it, has been done already.
    """
    if isinstance(kind, TypeDecorator) and not isinstance(kind, types.Interval):
        here, there = (kind.load_dialect_impl(dialect) for dialect in (source, target))
        if type(here) is type(there):
            return plain_types(here, source, target)[0], plain_types(there, source, target)[1]
    return kind.dialect_impl(source), kind.dialect_impl(target)


def reader(kind: TypeEngine[Any], dialect: Dialect) -> Step:
    """Return the step from what the driver gives to a Python value.

    It raises UnfitError for what SQLite may keep in the column although it is of another type.
    """
    wanted = next((found for base, found in RAW.items() if isinstance(kind, base)), ())
    strict = dialect.name == "sqlite"
    process: Step
    if not strict and isinstance(kind, types.Numeric | types.Float):
        # SQLAlchemy's own step has to know the driver's type of the column
        process = Decimal if kind.asdecimal else float
    else:
        process = kind.result_processor(dialect, None) or given
    is_boolean = isinstance(kind, types.Boolean)
    times: dict[type[TypeEngine[Any]], Step] = {types.DateTime: utc, types.Time: utc_time}
    convert = next((step for base, step in times.items() if isinstance(kind, base)), given)

    def read(raw: Any) -> Any:
        if raw is None:
            return None
        if strict and wanted and type(raw) not in wanted:
            raise UnfitError(f"is {KINDS.get(type(raw), 'something')} in place of {told(wanted)}")
        if strict and is_boolean and raw not in {0, 1}:
            raise UnfitError("is neither 0 nor 1, as true and false are")
        try:
            return convert(process(raw))
        except LookupError:
            raise UnfitError("is none of the values that the column may have") from None

    return read


def told(wanted: tuple[type, ...]) -> str:
    return KINDS[wanted[-1]]


def writer(kind: TypeEngine[Any], dialect: Dialect) -> Step:
    """Return the step from a Python value to what the driver takes."""
    process: Step = kind.bind_processor(dialect) or given
    aware = bool(getattr(kind, "timezone", False)) and dialect.name == "postgresql"
    if aware and isinstance(kind, types.DateTime | types.Time):
        return given_or_none(lambda value: value.replace(tzinfo=UTC))
    return given_or_none(process)


def comparer(
    here: TypeEngine[Any], there: TypeEngine[Any], target: Dialect, kept: TypeEngine[Any]
) -> Step:
    """Return the step from a Python value to a form that is equal on both sides."""
    if isinstance(there, types.Numeric):
        return given_or_none(digits)
    if isinstance(there, types.Float):
        single = isinstance(kept, types.REAL) and target.name == "postgresql"
        return given_or_none((lambda value: struct.pack("<f", value)) if single else float)
    if isinstance(kept, types.CHAR) and isinstance(there, types.String):
        return given_or_none(lambda value: str(value).rstrip(" "))
    if isinstance(there, types.Uuid):
        return given_or_none(lambda value: str(value).replace("-", ""))
    if isinstance(here, TypeDecorator):
        return given_or_none(writer(there, target))
    return given


def limits(there: TypeEngine[Any], target: Dialect, kept: TypeEngine[Any]) -> list[Step]:
    """Return the checks of a value against the column in the target."""
    if target.name == "sqlite":
        if isinstance(there, types.Numeric | types.Float):
            return [given_or_none(number_in_sqlite(there))]
        return []
    if isinstance(there, types.JSON):
        return [given_or_none(json_in_postgresql(binary="JSONB" in type(kept).__name__))]
    if isinstance(kept, types.Integer):
        bits = {types.SmallInteger: 15, types.BigInteger: 63}
        bound = 2 ** next((n for base, n in bits.items() if isinstance(kept, base)), 31)
        return [given_or_none(whole(bound))]
    if isinstance(kept, types.Float):
        return [given_or_none(floating)] if isinstance(kept, types.REAL) else []
    if isinstance(kept, types.Numeric):
        return [given_or_none(decimal(kept.precision, kept.scale))]
    if isinstance(kept, types.String):
        return [text(kept.length)]
    return []


def given_or_none(step: Step) -> Step:
    return lambda value: None if value is None else step(value)


def filled(value: Any) -> None:
    if value is None:
        raise UnfitError("is empty, and has to have a value")


def utc(value: datetime) -> datetime:
    """Return a time in UTC, by the chassis's rule that one without an offset is UTC already."""
    return value if value.tzinfo is None else in_utc(value).replace(tzinfo=None)


def utc_time(value: time) -> time:
    if value.tzinfo is not None and value.utcoffset():
        raise UnfitError("is a time of day with an offset, which only a date can convert")
    return value.replace(tzinfo=None)


def text(length: int | None) -> Step:
    """Return the check of a text, whose length counts characters."""

    def check(value: Any) -> None:
        if not isinstance(value, str):
            return
        if length is not None and len(value) > length:
            raise UnfitError(f"has {len(value)} characters, and the column takes {length}")
        if "\0" in value:
            raise UnfitError("has a NUL character, which PostgreSQL cannot keep")
        if not value.isascii() and not is_unicode(value):
            raise UnfitError("is not UTF-8")

    return check


def is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole(bound: int) -> Step:
    def check(value: Any) -> None:
        if not -bound <= value < bound:
            raise UnfitError(f"is out of range: the column takes {-bound} to {bound - 1}")

    return check


def floating(value: float) -> None:
    try:
        (kept,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        kept = 0
    if value and not kept:
        raise UnfitError("is out of range of a number of single precision")


def decimal(precision: int | None, scale: int | None) -> Step:
    """Return the check of a number whose digits the column limits."""

    def check(value: Any) -> None:
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if precision is None:
            return
        if not number.is_finite():
            if not number.is_nan():
                raise UnfitError("is infinite, which the column cannot keep")
            return
        places = scale or 0
        if abs(number) >= Decimal(10) ** (precision - places):
            raise UnfitError(f"is out of range: the column takes {precision - places} digits")
        exponent = number.as_tuple().exponent
        if isinstance(exponent, int) and -exponent > places and number != round(number, places):
            raise UnfitError(f"has more than the {places} decimals that the column keeps")

    return check


def number_in_sqlite(kind: TypeEngine[Any]) -> Step:
    """Return the check of a number that SQLite keeps as a floating-point number."""
    places = getattr(kind, "_effective_decimal_return_scale", 10)

    def check(value: Any) -> None:
        if value != value:  # Only NaN is not equal to itself
            raise UnfitError("is NaN, which SQLite keeps as nothing")
        if isinstance(value, Decimal):
            if not value.is_finite():
                raise UnfitError("is infinite, which SQLite cannot keep as a decimal number")
            if Decimal(f"{float(value):.{places}f}") != value:
                raise UnfitError(
                    f"has more digits than the {SMALL} that SQLite keeps of a decimal number, or "
                    f"more than {places} decimals"
                )

    return check


def digits(value: Any) -> str:
    """Return a number without the zeros at its end, by which two equal ones may differ."""
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    shown = format(number, "f")
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return "0" if shown == "-0" else shown


def json_text(raw: Any) -> str:
    """Return JSON as text. SQLite may have made a number of a text that is one."""
    if isinstance(raw, int | float):
        return json.dumps(raw)
    if not isinstance(raw, str):
        raise UnfitError("is bytes in place of JSON")
    loads(raw)
    return raw


def loads(raw: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise UnfitError("is no JSON") from None


def json_in_postgresql(*, binary: bool) -> Step:
    def check(raw: str) -> None:
        text(None)(raw)
        value = json.loads(raw, parse_constant=not_json)
        # The other type keeps the text, and does not look into it
        shown = json.dumps(value, ensure_ascii=False) if binary else ""
        if binary and (re.search(r"(?<!\\)(\\\\)*\\u0000", shown) or not is_unicode(shown)):
            raise UnfitError("has a NUL character or half of one in its JSON, which jsonb refuses")

    return check


def not_json(name: str) -> None:
    raise UnfitError(f"has {name}, which is no JSON")
