"""Output of the commands."""

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import date
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trackbed.errors import UNSAFE, printable
from trackbed.model import Drift, Findings, Forecast, Inventory, Policy, Update

WORDS = 6
LONGEST = 1000
"""Maximum number of characters of a line in a cell."""
WHOLE = 8 * LONGEST
"""Width of a table without line breaks. A CI service takes some line beginnings for commands."""
# Longer answers are prose, which the table leaves out
ANSWER = 30
# The last four of FORMULA are the full-width ones
LOGGED = re.compile(r"#(?=#\[|#vso\[)")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def show(found: Findings[Any], *, as_json: bool) -> None:
    if as_json:
        print(quiet(as_json_text(found.document())))
        return
    console = Console()
    columns, row = FORMS[found.command]
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for item in map(harmless, found.items):
        cells = row(item) if not item.problem else [*row(item)[:-1], item.problem]
        style = "red" if item.problem else ""
        table.add_row(*(Text(cut(cell), style) for cell in (item.name, *cells)))
    if console.is_terminal:
        console.print(table)
    else:  # People who read a file or use grep want whole lines
        console.width = WHOLE
        with console.capture() as capture:
            console.print(table)
        print("\n".join(line.rstrip() for line in capture.get().splitlines()))
    console.print(Text(printable(found.summary), "green" if found.ok else "red"), soft_wrap=True)


def cut(cell: str) -> str:
    """Shorten long lines, so that one text does not make a column wide for all."""
    lines = cell.split("\n")
    return "\n".join(f"{line[:LONGEST]}..." if len(line) > LONGEST else line for line in lines)


def harmless(value: Any) -> Any:
    """Return the value with every text in it escaped for a terminal and a log."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {harmless(key): harmless(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [harmless(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        texts = {one.name: harmless(getattr(value, one.name)) for one in fields(value)}
        return replace(value, **texts)
    return value


def quiet(text: str) -> str:
    """Return JSON that says the same, without the characters that a terminal would obey."""

    def escaped(found: Any) -> str:
        return found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1]

    return LOGGED.sub(r"\\u0023", UNSAFE.sub(escaped, text))


def as_json_text(document: dict[str, Any]) -> str:
    options: dict[str, Any] = {"indent": 2, "ensure_ascii": False, "default": plain}
    try:
        return json.dumps(document, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(document), **options)


def finite(value: Any) -> Any:
    """Return the value, with texts for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """Return a text for a date or another value that YAML knows and JSON does not."""
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
    made = ""
    if item.branch:
        made = f"git -C {quote(item.repository or '')} switch {quote(item.branch)}"
    if made and item.outcome == "current":
        made = f"is there already: {made}"
    return [item.version or "unknown", item.outcome, made]


FORMS: dict[str, tuple[list[str], Callable[[Any], list[str]]]] = {
    "inventory": (["Service", "Version", "Days", "Behind", "Answers"], inventory_row),
    "drift": (["Service", "Version", "The template's files"], drift_row),
    "policy": (["Service", "Rules"], policy_row),
    "forecast": (["Service", "Version", "Forecast", ""], forecast_row),
    "update": (["Service", "Version", "Outcome", ""], update_row),
}


def write_csv(items: Sequence[Inventory]) -> None:
    """Write one row for each service, with one column for each answer."""
    names = list(dict.fromkeys(name for item in items for name in item.answers))
    columns = [field.name for field in fields(Inventory) if field.name != "answers"]
    writer = csv.writer(sys.stdout)
    writer.writerow([*columns, *(printable(f"answers.{name}") for name in names)])
    for item in items:
        values: list[Any] = [getattr(item, column) for column in columns]
        values += [item.answers.get(name) for name in names]
        writer.writerow(["" if value is None else safe(short(value)) for value in values])


def safe(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{printable(text)}" if text.lstrip().startswith(FORMULA) else printable(text)
