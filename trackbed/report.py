"""Page about all services, in a file that needs no other."""

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from trackbed.addresses import shown
from trackbed.errors import FleetError
from trackbed.model import Drift, Findings, Forecast, Inventory, Policy, Release, now
from trackbed.releases import as_version, final
from trackbed.show import plain
from trackbed.templates import Template

PAGE = Path(__file__).with_name("page.html")
MARK = b'<meta name="generator" content="trackbed-fleet report">'
# JavaScript rounds larger numbers
EXACT = 2**53


@dataclass(frozen=True)
class Overview:
    """Overview of the services, with everything that goes into the page."""

    template: Template | None
    releases: Sequence[Release]
    inventory: Findings[Inventory]
    drift: Findings[Drift] | None = None
    policy: Findings[Policy] | None = None
    forecast: Findings[Forecast] | None = None

    def document(self) -> dict[str, Any]:
        found = {
            "inventory": self.inventory,
            "drift": self.drift,
            "policy": self.policy,
            "forecast": self.forecast,
        }
        return {
            "generated": now(),
            "template": shown(self.template.address) if self.template else None,
            "releases": [
                {"version": one.version, "date": one.date.isoformat(), "summary": one.summary}
                for one in final(self.releases)
            ],
            "versions": versions(self.inventory.items, self.releases),
            **{name: part.document() if part else None for name, part in found.items()},
        }

    def summary(self) -> str:
        """Return the overview in one line."""
        services = self.inventory.items
        read = [item for item in services if item.problem is None]
        parts = [
            f"{len(services)} {'service' if len(services) == 1 else 'services'}",
            f"{sum(item.behind == 0 for item in read)} up to date",
            f"{sum(bool(item.behind) for item in read)} behind",
            f"{sum(item.behind is None for item in read)} unknown",
            f"{len(services) - len(read)} with problems",
        ]
        if self.drift:
            parts.append(
                f"{sum(bool(i.changed or i.missing) for i in self.drift.items)} with drift"
            )
        if self.policy:
            parts.append(f"{sum(bool(item.violations) for item in self.policy.items)} break rules")
        if self.forecast:
            parts.append("GO" if self.forecast.ok else "NO-GO")
        return ", ".join(parts)


def versions(items: Sequence[Inventory], releases: Sequence[Release]) -> list[str]:
    """Return all versions that are mentioned, in their order, which the page cannot compute."""
    found = {item.version for item in items if item.version and as_version(item.version)}
    return sorted(found | {release.version for release in releases}, key=Version)


def render(document: dict[str, Any]) -> str:
    """Return the page. Its policy lets only its own style and script run."""
    page = PAGE.read_text(encoding="utf-8")
    return page.replace(">DATA<", f">{block(document)}<", 1).replace(
        '"POLICY"', f'"{content_policy(page)}"', 1
    )


def content_policy(page: str) -> str:
    """Return the page's policy (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    hashes = {
        name: " ".join(map(digest, re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)))
        for name in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def block(document: dict[str, Any]) -> str:
    """Return JSON in ASCII that can neither end a script nor begin a comment."""
    text = json.dumps(exact(document), allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def exact(value: Any) -> Any:
    """Return a value that JSON and a script keep exactly. Other values of YAML become text."""
    if isinstance(value, dict):
        return {str(key): exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int) and abs(value) < EXACT:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return plain(value)


def require_writable(file: Path) -> None:
    """Refuse a file that cannot be written, or that is no report. Raises FleetError."""
    try:
        if file.exists() and not is_report(file):
            raise FleetError(f"{file} is there already, and is no report: not overwritten")
        beside(file).touch()
        beside(file).unlink()
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}") from None


def is_report(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return MARK in opened.read(1000)


def beside(file: Path) -> Path:
    """Return a path in the same directory, so that its file can replace the other at once."""
    target = file.resolve()
    return target.with_name(f".{target.name}.{os.getpid()}")


def write(file: Path, page: str) -> None:
    """Write the page at once, so that readers get the old or the new one. Raises FleetError."""
    require_writable(file)
    staging = beside(file)
    try:
        staging.write_text(page, encoding="utf-8", newline="\n")
        os.replace(staging, file.resolve())
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            staging.unlink()
