"""Findings of the commands. Copier is imported only if a command needs it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trackbed.inventory import take
from trackbed.model import Drift, Findings, Forecast, Inventory, Item, Policy, Update
from trackbed.policy import Rule, judge, require_known
from trackbed.templates import Catalogue, Fleet, Ownership, questions, read_ownership

if TYPE_CHECKING:
    from trackbed.attempt import Job

OUTCOMES = ("updated", "current", "failed", "refused")


def inventory(fleet: Fleet, catalogue: Catalogue | None = None) -> Findings[Inventory]:
    items = take(fleet.services, catalogue or Catalogue(fleet.template), fleet.jobs)
    problems = broken(items)
    return Findings("inventory", items, not problems, f"{count(items)}, {problems} with problems")


def read_owned(fleet: Fleet, file: Path | None = None) -> Ownership:
    """Return the paths that are the template's. Raises FleetError."""
    directory = Path(fleet.template.address if fleet.template else ".")
    return read_ownership(file or directory / "ownership.toml")


def drift(fleet: Fleet, owned: Ownership) -> Findings[Drift]:
    from trackbed.drift import DriftJob, examine
    from trackbed.prepare import Wanted, in_each

    compare = partial(DriftJob, ownership=owned)
    items = in_each(fleet, Wanted(stay=True), compare, examine, Drift, "Comparing")
    problems = broken(items)
    differing = sum(bool(item.changed or item.missing) for item in items)
    summary = f"{count(items)}, {differing} with drift, {problems} with problems"
    return Findings("drift", items, not problems and not differing, summary)


def policy(
    fleet: Fleet, items: Sequence[Inventory], rules: Sequence[Rule], file: Path
) -> Findings[Policy]:
    """Judge the services. Raises FleetError for a rule of a question that nobody asks."""
    known = questions(fleet.template) | {name for item in items for name in item.answers}
    require_known(rules, known, file)
    judged = judge(items, rules)
    breaking = sum(bool(item.violations) for item in judged)
    problems = broken(judged)
    summary = f"{count(judged)}, {breaking} break rules, {problems} with problems"
    return Findings("policy", judged, not breaking and not problems, summary)


def forecast(fleet: Fleet, to: str | None) -> Findings[Forecast]:
    from trackbed.forecast import decide, predict
    from trackbed.prepare import Wanted, in_each

    wanted = Wanted(to, working_tree=True)
    items = in_each(fleet, wanted, same, predict, Forecast, "Forecasting")
    ok, summary = decide(items)
    return Findings("forecast", items, ok, summary, target(items) or to)


def update(
    fleet: Fleet, to: str | None, *, branch: str | None, test: str | None
) -> Findings[Update]:
    """Update each on a new branch. If `test` is given, this command has to succeed."""
    from trackbed import parallel
    from trackbed.prepare import Wanted, in_each
    from trackbed.update import TEST_SECONDS, UpdateJob, branch_name
    from trackbed.update import update as update_service

    def order(job: "Job") -> UpdateJob:
        return UpdateJob(job, branch or branch_name(job), test)

    wanted = Wanted(to, release_only=True)
    seconds = parallel.SECONDS + (TEST_SECONDS if test else 0)
    items = in_each(fleet, wanted, order, update_service, Update, "Updating", seconds)
    done = {name: sum(item.outcome == name for item in items) for name in OUTCOMES}
    summary = f"{count(items)}: {', '.join(f'{n} {name}' for name, n in done.items() if n)}"
    ok = not done["failed"] and not done["refused"]
    return Findings("update", items, ok, summary, target(items) or to)


def target(items: Sequence[Forecast] | Sequence[Update]) -> str | None:
    return next((item.target for item in items if item.target), None)


def same(job: "Job") -> "Job":
    return job


def broken(items: Sequence[Item]) -> int:
    return sum(item.problem is not None for item in items)


def count(services: Sequence[Item]) -> str:
    return f"{len(services)} {'service' if len(services) == 1 else 'services'}"
