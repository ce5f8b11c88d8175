"""Forecast of `copier update` of a service, tried in a clone that is thrown away."""

from collections.abc import Sequence
from pathlib import Path

from trackbed.attempt import Job, clone, clone_path, try_update, uncommitted, workspace
from trackbed.errors import ServiceError
from trackbed.model import Attempt, Forecast, Verdict
from trackbed.services import where

GOOD: set[Verdict] = {"current", "clean"}
FAULTS: dict[Verdict, str] = {
    "conflicts": "conflicts",
    "lost": "edits lost",
    "trust": "trust needed",
    "unknown": "not to be forecast",
}


def predict(job: Job) -> Forecast:
    forecast = Forecast(
        name=job.service.name,
        where=where(job.service),
        version=job.version,
        target=job.step.name,
    )
    try:
        if uncommitted(job):
            forecast.notes.append("changes that are not committed are left out")
        with workspace(job) as scratch:
            project = clone(job, clone_path(job, Path(scratch)))
            attempt = try_update(job, project, Path(scratch))
        forecast.changed = attempt.changed
        forecast.conflicts = attempt.conflicts
        forecast.lost = attempt.lost
        forecast.trust = attempt.trust
        forecast.verdict = verdict(attempt)
    except ServiceError as error:
        forecast.problem = str(error)
    return forecast


def verdict(attempt: Attempt) -> Verdict:
    if attempt.trust:
        return "trust"
    if attempt.conflicts:
        return "conflicts"
    if attempt.lost:
        return "lost"
    return "clean" if attempt.changed else "current"


def decide(forecasts: Sequence[Forecast]) -> tuple[bool, str]:
    """Return go or no-go, and one line with the reasons."""
    counts = {
        name: sum(forecast.verdict == name for forecast in forecasts)
        for name in (*sorted(GOOD), *FAULTS)
    }
    total = f"{len(forecasts)} {'service' if len(forecasts) == 1 else 'services'}"
    faults = [f"{counts[name]} {label}" for name, label in FAULTS.items() if counts[name]]
    good = [f"{counts[name]} {name}" for name in ("clean", "current") if counts[name]]
    return not faults, f"{'NO-GO' if faults else 'GO'}: {total}: {', '.join(faults + good)}"
