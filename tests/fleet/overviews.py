"""Made-up services, as a report takes them."""

from datetime import date
from typing import Any

from trackbed.model import Findings, Inventory, Release
from trackbed.report import Overview
from trackbed.templates import Template

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(2)>",
    "]]>&lt;\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}\x00\"'`\\u003c",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
    "__proto__",
    "\udcff",
]

NUMBERS = ["0.8.0", "0.9.0", "0.10.0", "0.11.0"]
RELEASES = [
    Release(version, str(number) * 40, date(2026, 1 + number, 1))
    for number, version in enumerate(NUMBERS)
]


def service(name: str, version: str = "0.11.0", **answers: Any) -> Inventory:
    at = NUMBERS.index(version)
    return Inventory(
        name=name,
        where=f"/srv/{name}",
        template="gh:acme/trackbed",
        recorded=version,
        version=version,
        released=RELEASES[at].date,
        age_days=100 - 30 * at,
        behind=len(NUMBERS) - 1 - at,
        newest=NUMBERS[-1],
        answers=answers,
    )


def overview(*items: Inventory, **more: Any) -> Overview:
    found = Findings("inventory", items, True, f"{len(items)} services")
    return Overview(Template("gh:acme/trackbed"), RELEASES, found, **more)
