"""Measurements in turns, and what they say: medians, ratios, and whether a target is met."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final, Literal, TypeVar

T = TypeVar("T")

OURS = "Trackbed"


class MissingTool(Exception):
    """The message says what to install."""


@dataclass(frozen=True)
class Target:
    """What the ratio to the other side, or without one our own value, has to be."""

    bound: Literal["at least", "at most"]
    limit: float
    of: Literal["ratio", "value"] = "ratio"

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.bound == "at least" else value <= self.limit


@dataclass(frozen=True)
class Row:
    """One figure of every run of ours and, in the same order, of the other side.

    Args:
        what: What is measured.
        unit: Of the values.
        ours: A value a run.
        other: A value a run of the other side, run in turns with ours; empty without one.
        against: The other side's name.
        target: What is promised, if anything is.
        lost: Whether a run saw an error: then nothing is met.
    """

    what: str
    unit: str
    ours: list[float]
    other: list[float] = field(default_factory=list)
    against: str = ""
    target: Target | None = None
    lost: bool = False

    @property
    def ratios(self) -> list[float]:
        """Of each pair: what slows the machine for a while slows both."""
        pairs = zip(self.ours, self.other, strict=False)
        return [ours / other for ours, other in pairs if other]

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Nothing without a target."""
        if self.target is None:
            return None
        value = median(self.ours) if self.target.of == "value" else self.ratio
        return not self.lost and value is not None and self.target.is_met(value)

    @classmethod
    def load(cls, stored: dict[str, Any]) -> "Row":
        target = stored.get("target")
        # what is empty is not kept
        empty: dict[str, Any] = {"unit": "", "ours": []}
        return cls(**{**empty, **stored, "target": Target(**target) if target else None})


@dataclass
class Result:
    """What one benchmark has found."""

    rows: list[Row] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Runs that saw an error, which nobody may take for a figure."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, stored: dict[str, Any]) -> "Result":
        rows = [Row.load(row) for row in stored["rows"]]
        return cls(rows, stored.get("errors", []), stored.get("notes", []))

    def dump(self) -> dict[str, Any]:
        rows = [{key: value for key, value in asdict(row).items() if value} for row in self.rows]
        for row in rows:
            for side in ("ours", "other"):
                if side in row:
                    row[side] = [float(f"{value:.4g}") for value in row[side]]
        return {"rows": rows, "errors": self.errors, "notes": self.notes}

    def add(
        self,
        what: str,
        unit: str,
        ours: Sequence[float],
        other: Sequence[float] = (),
        against: str = "",
        target: Target | None = None,
    ) -> None:
        """One more row; after the errors, which make it lost."""
        lost = bool(self.errors)
        self.rows.append(Row(what, unit, list(ours), list(other), against, target, lost))


@dataclass(frozen=True)
class Effort:
    """How many pairs, how many seconds each load lasts, and how many minutes a soak does."""

    pairs: int = 5
    seconds: int = 4
    quick: bool = False
    minutes: float = 10


QUICK: Final = Effort(2, 2, quick=True)


def interleave(times: int, *sides: Callable[[], T]) -> list[list[T]]:
    """Run the sides in turns, A B A B, and return what each has measured."""
    measured: list[list[T]] = [[] for _ in sides]
    for _ in range(times):
        for found, side in zip(measured, sides, strict=True):
            found.append(side())
    return measured
