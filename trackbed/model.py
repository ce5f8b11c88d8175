"""Findings of the commands, and their form as JSON.

Every command but `report` prints with `--json` one object, made by `Findings.document`:

    {"command": "inventory" | "drift" | "policy" | "forecast" | "update",
     "generated": "2026-11-24T12:00:00+00:00",
     "ok": true,                       # the exit code is 0
     "summary": "one line",
     "target": "0.2.0" | null,         # of forecast and update
     "services": [...]}                # one a service, in the order in which they were given

Each of the services has `name`, `where` (a path or an address, without a password) and `problem`
(null, or the one line that says why it could not be dealt with, and the other fields are empty).
The further fields are those of `Inventory`, `Drift`, `Policy`, `Forecast` and `Update` below.
Fields are added, never renamed.

`report` puts these objects into its page, as the text of its element `#data`:

    {"generated": "2026-11-24T12:00:00+00:00",
     "template": "gh:acme/template" | null,      # the one that the command knows
     "releases": [{"version": "0.1.0", "date": "2026-11-24", "summary": "..."}],  # oldest first
     "versions": ["0.1.0", "0.2.0rc1", "0.2.0"],     # all that are mentioned, in their order
     "inventory": {...}, "drift": {...} | null, "policy": {...} | null, "forecast": {...} | null}
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Generic, Literal, TypeVar


@dataclass(frozen=True)
class Service:
    """Service, whose repository is on this machine or at an address that git can clone."""

    name: str
    path: str | None = None
    url: str | None = None
    branch: str | None = None


@dataclass(frozen=True)
class Release:
    version: str
    commit: str
    date: date
    summary: str = ""


@dataclass(kw_only=True)
class Item:
    name: str
    where: str
    problem: str | None = None


@dataclass(kw_only=True)
class Inventory(Item):
    """Service, and the template's version in it.

    Attributes:
        template: the template's address, as `_src_path` has it.
        recorded: `_commit`, as it stands.
        version: the release, or with `distance` the last release before.
        distance: commits after that release, 0 for the release itself.
        unknown: why there is no version, or not the number of releases it is behind.
        released: the release's date.
        age_days: days since then.
        behind: releases that are newer.
        newest: the newest release.
        answers: without `_src_path` and `_commit`.
    """

    template: str | None = None
    recorded: str | None = None
    version: str | None = None
    distance: int = 0
    unknown: str | None = None
    released: date | None = None
    age_days: int | None = None
    behind: int | None = None
    newest: str | None = None
    answers: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Drift(Item):
    """Drift, the template's own files that are not as the recorded version renders them."""

    version: str | None = None
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Violation:
    rule: str
    found: str


@dataclass(kw_only=True)
class Policy(Item):
    violations: list[Violation] = field(default_factory=list)


@dataclass(kw_only=True)
class Loss:
    """Words that somebody wrote into a file and that the update removes."""

    path: str
    tokens: list[str]


@dataclass(kw_only=True)
class Attempt:
    """Result of `copier update` in a clone."""

    changed: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
    trust: str | None = None
    notes: list[str] = field(default_factory=list)


Verdict = Literal["current", "clean", "conflicts", "lost", "trust", "unknown"]


@dataclass(kw_only=True)
class Forecast(Item):
    """Forecast of what `copier update` would do.

    Attributes:
        verdict: `current` if it would do nothing, and `clean` if nothing is in its way. With
            `conflicts`, edits may be lost besides. With `lost`, edits of the service's own are
            lost without a conflict. With `trust`, the template runs commands. For `unknown`, see
            `problem`.
        changed: the files that it writes or deletes.
        conflicts: those that somebody has to resolve.
        lost: the words of the service's own that would be gone.
        trust: what Copier says that it would run.
        notes: what the forecast leaves out.
    """

    version: str | None = None
    target: str | None = None
    verdict: Verdict = "unknown"
    changed: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
    trust: str | None = None
    notes: list[str] = field(default_factory=list)


Outcome = Literal["current", "updated", "failed", "refused"]


@dataclass(kw_only=True)
class Update(Item):
    """Result of an update. Only the outcome `updated` means that it has made `branch`."""

    version: str | None = None
    target: str | None = None
    outcome: Outcome = "failed"
    branch: str | None = None
    commit: str | None = None
    repository: str | None = None
    changed: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


Kind = TypeVar("Kind", bound=Item)


@dataclass(frozen=True)
class Findings(Generic[Kind]):
    """Findings of a command. `ok` means that all is well."""

    command: str
    items: Sequence[Kind]
    ok: bool
    summary: str
    target: str | None = None

    def document(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "generated": now(),
            "ok": self.ok,
            "summary": self.summary,
            "target": self.target,
            "services": [as_dict(item) for item in self.items],
        }


def as_dict(item: Item) -> dict[str, Any]:
    """Return the fields. Answers are not copied, because there are many of them."""
    return {
        name: [asdict(one) if isinstance(one, Loss | Violation) else one for one in value]
        if isinstance(value, list)
        else value
        for name, value in vars(item).items()
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
