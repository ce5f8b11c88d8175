"""What the commands print."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import date
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trackbed.model import Drift, Findings, Forecast, Inventory, Policy, Update

WORDS = 6
WHOLE = 2000
# the longer ones are prose
ANSWER = 30


def show(found: Findings[Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.document(), indent=2, ensure_ascii=False, default=plain))
        return
    console = Console()
    columns, row = FORMS[found.command]
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for item in found.items:
        cells = row(item) if not item.problem else [*row(item)[:-1], item.problem]
        style = "red" if item.problem else ""
        table.add_row(Text(item.name, style), *(Text(cell, style) for cell in cells))
    if console.is_terminal:
        console.print(table)
    else:  # whoever reads it in a file or through grep wants whole lines
        console.width = WHOLE
        with console.capture() as capture:
            console.print(table)
        print("\n".join(line.rstrip() for line in capture.get().splitlines()))
    console.print(Text(found.summary, "green" if found.ok else "red"), soft_wrap=True)


def plain(value: Any) -> Any:
    """Answers that YAML reads as dates, and whatever else JSON does not know."""
    return value.isoformat() if isinstance(value, date) else str(value)


def version(item: Inventory) -> str:
    if item.version is None:
        return "unknown"
    return f"{item.version} + {item.distance}" if item.distance else item.version


def number(value: int | None) -> str:
    return "?" if value is None else str(value)


def answers(item: Inventory) -> str:
    pairs = [(name, short(value)) for name, value in item.answers.items()]
    return " ".join(f"{name}={value}" for name, value in pairs if len(value) <= ANSWER)


def short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(short, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def inventory_row(item: Inventory) -> list[str]:
    text = answers(item)
    if item.unknown:
        text = f"({item.unknown}) {text}"
    return [version(item), number(item.age_days), number(item.behind), text]


def drift_row(item: Drift) -> list[str]:
    found = [f"{name} (changed)" for name in item.changed]
    found += [f"{name} (missing)" for name in item.missing]
    return [item.version or "unknown", "\n".join(found) or "as rendered"]


def policy_row(item: Policy) -> list[str]:
    return ["\n".join(f"{one.rule}: {one.found}" for one in item.violations) or "keeps the rules"]


def forecast_row(item: Forecast) -> list[str]:
    lines = [f"conflict in {name}" for name in item.conflicts]
    for loss in item.lost:
        more = " ..." if len(loss.tokens) > WORDS else ""
        lines.append(f"lost from {loss.path}: {' '.join(loss.tokens[:WORDS])}{more}")
    if item.trust:
        lines.append(item.trust)
    if not lines:
        lines.append(f"{len(item.changed)} files")
    return [item.version or "unknown", item.verdict, "\n".join(lines + item.notes)]


def update_row(item: Update) -> list[str]:
    made = f"git -C {item.repository} switch {item.branch}" if item.branch else ""
    return [item.version or "unknown", item.outcome, made]


FORMS: dict[str, tuple[list[str], Callable[[Any], list[str]]]] = {
    "inventory": (["Service", "Version", "Days", "Behind", "Answers"], inventory_row),
    "drift": (["Service", "Version", "The template's files"], drift_row),
    "policy": (["Service", "Rules"], policy_row),
    "forecast": (["Service", "Version", "Forecast", ""], forecast_row),
    "update": (["Service", "Version", "Outcome", ""], update_row),
}


def write_csv(items: Sequence[Inventory]) -> None:
    """One row a service, one column an answer."""
    names = list(dict.fromkeys(name for item in items for name in item.answers))
    columns = [field.name for field in fields(Inventory) if field.name != "answers"]
    writer = csv.writer(sys.stdout)
    writer.writerow([*columns, *(f"answers.{name}" for name in names)])
    for item in items:
        values = [getattr(item, column) for column in columns]
        values += [item.answers.get(name) for name in names]
        writer.writerow(["" if value is None else safe(short(value)) for value in values])


def safe(text: str) -> str:
    """A spreadsheet takes these for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
