"""Results as text, as JSON, and in the documentation."""

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import charts
from benchmarks.runs import Result, Row
from benchmarks.serving import USD_A_MEGABYTE

RESULTS = Path(__file__).with_name("results.json")
ROOT = Path(__file__).parent.parent
QUESTIONS = ROOT / "copier.yml"
MEASURED = ROOT / "hooks" / "measured.jinja"
DOCS = ROOT / "docs"
PAGE = DOCS / "performance.md"
CHARTS_IN = DOCS / "charts"
IN_HELP = re.compile(r"(?:^ {4}\d workers?: .* USD a month\n)+", re.MULTILINE)
BEGIN, END = "<!-- results: python -m benchmarks --draw -->", "<!-- end of the results -->"


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


def machine() -> dict[str, str | int | float]:
    """Where, with what, and beside which load a benchmark begins."""
    names = (
        line.partition(": ")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    return {
        "measured": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "processor": next(names, platform.machine()),
        "cores": os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 2),
    }


def keep(
    name: str,
    result: Result,
    path: Path | None = None,
    where: Mapping[str, str | int | float] | None = None,
) -> None:
    """Add it to the file, in the place of an earlier one of that name."""
    stored = load(path)
    stored[name] = {**(where or machine()), **result.dump()}
    text = json.dumps(stored, indent=1, ensure_ascii=False)
    (path or RESULTS).write_text(text + "\n", encoding="utf-8")


def as_table(stored: dict[str, Any], names: Iterable[str]) -> str:
    """Every row as Markdown, where it was measured, and what was not."""
    table = [["Benchmark", *HEADINGS], ["---"] * (len(HEADINGS) + 1)]
    for name in names:
        if name in stored:
            table += [[f"`{name}`", *cells(row)] for row in Result.load(stored[name]).rows]
    lines = [*(f"| {' | '.join(row)} |" for row in table), ""]
    if places := {place(stored[name]) for name in names if name in stored}:
        lines += [f"Medians, with the lowest and highest. {'; '.join(sorted(places))}.", ""]
    if absent := [f"`{name}`" for name in names if name not in stored]:
        lines += [f"Not measured yet: {', '.join(absent)}.", ""]
    return "\n".join(lines)


def place(entry: Mapping[str, Any]) -> str:
    return (
        f"{entry['measured']}: {entry.get('cores', '?')} cores ({entry.get('processor', '?')}), "
        f"Python {entry['python']}"
    )


def loads(stored: dict[str, Any]) -> str:
    """The machine's load when each benchmark began."""
    found = [f"`{name}` {entry['load']:g}" for name, entry in stored.items() if "load" in entry]
    return f"The machine's load before each: {', '.join(found)}.\n" if found else ""


QUOTED = {
    "trivial_rate": ("trivial", "requests a second"),
    "mixed_rate": ("mixed", "requests a second"),
    "mixed_tail": ("mixed", "99 % answered within"),
}
"""What the runbook of a rendered project quotes: its name there, the benchmark and the row."""


def rough(value: float) -> str:
    """Two digits, for people who have another machine."""
    return f"{float(f'{value:.2g}'):,.0f}"


def measured(results: Mapping[str, Result]) -> str:
    """The figures of QUOTED as hooks/measured.jinja has them.

    Raises:
        KeyError: One of the benchmarks, or its row, is not there.
    """
    lines = ["{#- Medians of docs/performance.md, written by `python -m benchmarks --draw`. -#}"]
    for name, (benchmark, what) in QUOTED.items():
        rows = {row.what: row for row in reversed(results[benchmark].rows)}
        lines.append(f"{{%- set {name} = '{rough(median(rows[what].ours))}' -%}}")
    return "\n".join([*lines, ""])


def workers(result: Result) -> dict[str, list[str]]:
    """Medians by the number of workers: requests a second, ms, MB, and USD a month for the memory.

    Nothing if a run saw an error.
    """
    found: dict[str, list[str]] = {}
    for row in result.rows:
        name, _, _ = row.what.partition(": ")
        value = median(row.ours)
        found.setdefault(name, []).append(f"{value:,.0f}")
        if row.unit == "MB":
            found[name].append(f"{value * USD_A_MEGABYTE:.2f}")
    return {} if result.errors else found


def workers_help(result: Result) -> str:
    """What the help of the question `workers` says of each number."""
    lines = []
    for name, (rate, tail, memory, cost) in workers(result).items():
        figures = f"{rate} requests/s, 99 % in {tail} ms, {memory} MB, {cost} USD a month"
        lines.append(f"    {f'{name}:':10} {figures}\n")
    return "".join(lines)


def workers_table(result: Result) -> str:
    headings = ["", "Requests a second", "99 % within, ms", "Memory, MB", "Its USD a month"]
    found = [[name, *figures] for name, figures in workers(result).items()]
    table = [headings, ["---"] * len(headings), *found] if found else []
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def pages(stored: dict[str, Any], names: Iterable[str]) -> dict[Path, str]:
    """Every file that shows these results, as it has to be: charts, tables, texts."""
    names = list(names)
    results = {name: Result.load(stored[name]) for name in names if name in stored}
    drawn = {CHARTS_IN / name: chart(results) for name, chart in charts.CHARTS.items()}
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    table = as_table(stored, names) + loads(stored)
    if all(name in results and not results[name].errors for name, _ in QUOTED.values()):
        drawn[MEASURED] = measured(results)
    beside = results.get("workers", Result())
    if by_workers := workers_table(beside):
        table += f"\nThe mixed load, by the number of workers:\n\n{by_workers}"
        questions = QUESTIONS.read_text(encoding="utf-8")
        drawn[QUESTIONS] = IN_HELP.sub(workers_help(beside), questions)
    return {**drawn, PAGE: f"{before}{BEGIN}\n\n{table}\n{END}{after}"}


def draw(stored: dict[str, Any], names: Iterable[str]) -> None:
    """Write them."""
    CHARTS_IN.mkdir(exist_ok=True)
    for path, text in pages(stored, names).items():
        path.write_text(text, encoding="utf-8")
