"""Charts as SVG that can be read on a light page and on a dark one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median

from benchmarks.runs import Result, Row

WIDTH = 720
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.faint{fill:#767676}"
    ".line{stroke:#767676}.ours{fill:#2f6fde}.other{fill:#9a9a9a}.missed{fill:#d1662a}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.faint{fill:#9a9a9a}"
    ".ours{fill:#6ea3ff}.other{fill:#777}.missed{fill:#f0935a}}"
)


@dataclass
class Drawing:
    """SVG, from top to bottom."""

    title: str
    height: int = 30
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def bar(self, x: float, y: float, width: float, kind: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="14" rx="2" '
            f'class="{kind}"/>'
        )

    def line(self, x: float, top: float, bottom: float) -> None:
        self.parts.append(
            f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}" class="line" '
            'stroke-dasharray="3 3"/>'
        )

    def svg(self) -> str:
        size = f'width="{WIDTH}" height="{self.height}" viewBox="0 0 {WIDTH} {self.height}"'
        title = escape(self.title)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">'
        heading = f'<text x="0" y="18" font-weight="600">{title}</text>'
        return "\n".join([head, f"<style>{STYLE}</style>", heading, *self.parts, "</svg>", ""])


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bars(title: str, groups: Mapping[str, Sequence[tuple[str, float, str]]]) -> str:
    """Groups of bars, each group on a scale of its own from 0: names, values and kinds."""
    drawing = Drawing(title)
    left, room = 170, WIDTH - 170 - 70
    for name, group in groups.items():
        drawing.text(0, drawing.height + 14, name, "faint")
        drawing.height += 22
        largest = max(value for _, value, _ in group) or 1
        for what, value, kind in group:
            drawing.text(left - 8, drawing.height + 12, what, anchor="end")
            drawing.bar(left, drawing.height, room * value / largest, kind)
            drawing.text(left + room * value / largest + 6, drawing.height + 12, number(value))
            drawing.height += 20
        drawing.height += 8
    if not groups:
        drawing.text(0, drawing.height + 14, "Not measured yet", "faint")
        drawing.height += 22
    return drawing.svg()


def chart_skeleton(results: Mapping[str, Result]) -> str:
    groups: dict[str, list[tuple[str, float, str]]] = {}
    wanted = ("requests a second", "99 % answered within", "memory (PSS)")
    for row in results.get("mixed", Result()).rows:
        # The rows beside the skeleton come before those beside the plain right way
        name = f"{row.what}, {row.unit}"
        if row.what in wanted and not row.lost and row.other and name not in groups:
            groups[name] = [
                ("Trackbed", median(row.ours), "ours"),
                ("usual skeleton", median(row.other), "other"),
            ]
    return bars("The mixed load, 32 clients: Trackbed and the usual skeleton", groups)


def chart_workers(results: Mapping[str, Result]) -> str:
    groups: dict[str, list[tuple[str, float, str]]] = {}
    for row in results.get("workers", Result()).rows:
        name, _, what = row.what.partition(": ")
        if not row.lost:
            groups.setdefault(f"{what}, {row.unit}", []).append((name, median(row.ours), "ours"))
    return bars("The mixed load with 1 to 4 workers", groups)


def margin(row: Row) -> float | None:
    """How many times better than its target; nothing where that is not a number."""
    if row.target is None or row.lost or not row.ours:
        return None
    value = median(row.ours) if row.target.of == "value" else row.ratio
    if not value or not row.target.limit:
        return None
    ratio = value / row.target.limit
    return ratio if row.target.bound == "at least" else 1 / ratio


def chart_targets(results: Mapping[str, Result]) -> str:
    """On a logarithmic scale, with the target as a line."""
    drawing = Drawing("How many times better than its target (the line)")
    found = [
        (f"{name}: {row.what}", value)
        for name, result in results.items()
        for row in result.rows
        if (value := margin(row)) is not None
    ]
    left, room = 330, WIDTH - 330 - 50
    low, high = math.log(0.25), math.log(16)

    def place(value: float) -> float:
        return left + room * (min(max(math.log(value), low), high) - low) / (high - low)

    top = drawing.height
    for name, value in found:
        drawing.text(left - 8, drawing.height + 12, name, anchor="end")
        begin, end = sorted((place(1), place(value)))
        drawing.bar(begin, drawing.height, end - begin, "ours" if value >= 1 else "missed")
        drawing.text(place(max(value, 1)) + 6, drawing.height + 12, number(value))
        drawing.height += 20
    if found:
        drawing.line(place(1), top, drawing.height)
    else:
        drawing.text(0, drawing.height + 14, "Not measured yet", "faint")
        drawing.height += 22
    drawing.height += 6
    return drawing.svg()


CHARTS = {
    "skeleton.svg": chart_skeleton,
    "targets.svg": chart_targets,
    "workers.svg": chart_workers,
}
