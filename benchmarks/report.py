"""Results as text, as JSON, and in the documentation."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runs import Result, Row

RESULTS = Path(__file__).with_name("results.json")


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 else f"{value:.2g}"


def spread(values: list[float]) -> str:
    """The median, and what lies around it."""
    if not values:
        return ""
    if min(values) == max(values):
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}\N{EN DASH}{number(max(values))})"


def verdict(row: Row) -> str:
    if row.lost:
        return "lost: a run saw an error"
    return {None: "", True: "met", False: "missed"}[row.met]


def promise(row: Row) -> str:
    if row.target is None:
        return ""
    sign = (
        "\N{GREATER-THAN OR EQUAL TO}"
        if row.target.bound == "at least"
        else "\N{LESS-THAN OR EQUAL TO}"
    )
    unit = f" {row.unit}" if row.target.of == "value" and row.unit else "\N{MULTIPLICATION SIGN}"
    return f"{sign} {row.target.limit:g}{unit if row.unit or row.target.of == 'ratio' else ''}"


def cells(row: Row) -> list[str]:
    what = f"{row.what}, {row.unit}" if row.unit else row.what
    ours, other = spread(row.ours), spread(row.other)
    against = f"{row.against}: {other}" if row.other else ""
    return [what, ours, against, spread(row.ratios), promise(row), verdict(row)]


HEADINGS = ["What", "Trackbed", "Against", "Ratio", "Target", ""]


def as_text(name: str, result: Result) -> str:
    table = [HEADINGS, *(cells(row) for row in result.rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    errors = [f"ERROR {error}" for error in result.errors]
    return "\n".join([name, *lines, *errors, *result.notes])


def load(path: Path | None = None) -> dict[str, Any]:
    path = path or RESULTS
    if not path.exists():
        return {}
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def keep(name: str, result: Result, path: Path | None = None) -> None:
    """Add it to the file, in the place of an earlier one of that name."""
    stored = load(path)
    stored[name] = {
        "measured": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        **result.dump(),
    }
    text = json.dumps(stored, indent=1, ensure_ascii=False)
    (path or RESULTS).write_text(text + "\n", encoding="utf-8")


def draw(stored: dict[str, Any]) -> None:
    """The charts and the tables of the documentation."""
