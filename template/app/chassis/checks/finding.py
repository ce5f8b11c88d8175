# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Finding of a check, with a verdict and the advice what to do about it."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

Outcome = Literal["ok", "warning", "failed", "skipped"]


class Finding(NamedTuple):
    """Result of a check. The verdict and the advice are one line each and contain no secret."""

    id: str
    status: Outcome
    verdict: str
    advice: str = ""


Check = Callable[[], Finding | Iterable[Finding]]


def ok(name: str, verdict: str) -> Finding:
    return Finding(name, "ok", verdict)


def warning(name: str, verdict: str, advice: str) -> Finding:
    return Finding(name, "warning", verdict, advice)


def failed(name: str, verdict: str, advice: str) -> Finding:
    return Finding(name, "failed", verdict, advice)


def skipped(name: str, verdict: str) -> Finding:
    return Finding(name, "skipped", verdict)
