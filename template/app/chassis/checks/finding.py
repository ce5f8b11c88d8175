# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""What a check says: a verdict, and what to do about it."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

Outcome = Literal["ok", "warning", "failed", "skipped"]


class Finding(NamedTuple):
    """One line each for the verdict and the advice; neither contains a secret."""

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
