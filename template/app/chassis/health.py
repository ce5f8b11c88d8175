# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Health of the service, as routes for monitors and as `python -m app status` for people.

`/health` runs the checks of the engine, of the backup and of the service, and `/health/live` shows
only that the process answers. Requests that come together share one run of the checks, which starts
after all of them have asked.
"""

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import Context
from typing import Any, Final, Generic, NotRequired, TypedDict, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from app.chassis.checks import finding
from app.chassis.checks.finding import Degraded as Degraded
from app.chassis.checks.finding import Details, HealthProblem, HealthStatus
from app.chassis.checks.finding import HealthCheck as HealthCheck
from app.chassis.checks.finding import Unhealthy as Unhealthy
from app.chassis.settings import CoreSettings

logger = logging.getLogger(__name__)

CHECK_TIMEOUT: Final = 3.0
"""Seconds until a check without an answer counts as failed."""

LEVELS: Final[dict[HealthStatus, int]] = {
    "ok": logging.INFO,
    "degraded": logging.WARNING,
    "failed": logging.ERROR,
}
"""Level at which each status is logged. The worse the status, the higher the level."""

Result = TypeVar("Result")


class Coalesced(Generic[Result]):
    """Single flight of a function, which runs only once at a time.

    All callers get the result of a run that began after they asked.

    Args:
        function: The function to run. It has to end.
    """

    def __init__(self, function: Callable[[], Awaitable[Result]]) -> None:
        self.function = function
        self.current: asyncio.Task[Result] | None = None
        self.next: asyncio.Task[Result] | None = None

    async def __call__(self) -> Result:
        """Return the result of the next run, or raise its exception."""
        if self.next is None or self.next.done():
            # The run belongs to no request, because the first caller may be gone before its end
            self.next = asyncio.create_task(self.run(), context=Context())
        return await asyncio.shield(self.next)

    async def run(self) -> Result:
        """Run the function when the run before has ended."""
        if self.current is not None and not self.current.done():
            await asyncio.wait([self.current])
        self.current, self.next = self.next, None
        return await self.function()


class CheckResult(TypedDict):
    status: HealthStatus
    message: NotRequired[str]
    details: NotRequired[Details]


Outcome = tuple[CheckResult, Exception | None]
"""Result of a check, and the error that it raised, which only the log may show."""


class Health:
    """Checks of /health.

    Args:
        settings: The version and the environment shown.
        checks: The checks by name. See HealthCheck.
    """

    def __init__(self, settings: CoreSettings, checks: Mapping[str, HealthCheck]) -> None:
        self.settings = settings
        # Each check has a thread of its own, because all threads of the routes may be waiting
        self.checks = {name: (check, anyio.CapacityLimiter(1)) for name, check in checks.items()}

    async def outcomes(self) -> dict[str, Outcome]:
        """Run the checks at the same time, and return the outcome of each."""
        outcomes = await asyncio.gather(*(run_check(*pair) for pair in self.checks.values()))
        return dict(zip(self.checks, outcomes, strict=True))

    def report(self, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        """Return what everybody may see."""
        return {
            "status": worst(outcomes),
            "version": self.settings.app_version,
            "environment": self.settings.environment,
            "checks": {name: result for name, (result, _) in outcomes.items()},
        }


async def run_check(check: HealthCheck, limiter: anyio.CapacityLimiter) -> Outcome:
    """Run one check with a time limit, whatever it does."""
    result: CheckResult = {"status": "ok"}
    details: Any = None  # The type checker cannot tell plain functions from coroutine functions
    error: Exception | None = None
    try:
        with anyio.fail_after(CHECK_TIMEOUT):
            if inspect.iscoroutinefunction(check):
                details = await check()
            else:
                details = await anyio.to_thread.run_sync(
                    check, limiter=limiter, abandon_on_cancel=True
                )
    except HealthProblem as problem:
        error, details = problem, problem.details
        result = {"status": problem.status, "message": str(problem)}
    except TimeoutError:
        result = {"status": "failed", "message": f"no answer within {CHECK_TIMEOUT:.0f} s"}
    except Exception as unexpected:
        error = unexpected
        result = {"status": "failed", "message": "the check itself failed"}
    return (result if details is None else {**result, "details": details}), error


def worst(outcomes: Mapping[str, Outcome]) -> HealthStatus:
    """Return the status of the whole, which is that of its worst part."""
    return max((result["status"] for result, _ in outcomes.values()), key=LEVELS.__getitem__)


class Changes:
    """Log of what is wrong and of when it is well again, a line for a change, not for a request.

    Each worker follows what it sees itself, and does not repeat what another has just logged.
    """

    def __init__(self) -> None:
        self.seen = finding.HEALTH[:]

    def note(self, outcomes: Mapping[str, Outcome]) -> None:
        """Log the state if it differs from the last one. Figures in it do not count."""
        told, unexpected = [], None
        for name, (result, error) in outcomes.items():
            if result["status"] != "ok":
                cause = error.__cause__ if isinstance(error, HealthProblem) else error
                unexpected = unexpected or (None if isinstance(error, HealthProblem) else error)
                reason = f"{result.get('message')} ({cause})" if cause else result.get("message")
                told.append(f"{name} {result['status']}: {reason}")
        text = "; ".join(told)
        size = len(finding.HEALTH)
        state = re.sub(rb"[0-9]+", b"", text.encode(errors="replace"))[:size].ljust(size, b"\0")
        if state == self.seen:
            return
        self.seen = state
        if state == finding.HEALTH[:]:
            return
        finding.HEALTH[:] = state
        level = LEVELS[worst(outcomes)]
        logger.log(level, "/health: %s", text or "all is well again", exc_info=unexpected)


def add_routes(app: FastAPI, checks: Health) -> None:
    """Add the two health routes.

    They are Starlette's own routes, which are cheap to match. Every other request is compared with
    them first.
    """
    changes = Changes()

    async def examine() -> tuple[int, bytes]:
        outcomes = await checks.outcomes()
        changes.note(outcomes)
        report = checks.report(outcomes)
        return 503 if report["status"] == "failed" else 200, bytes(JSONResponse(report).body)

    examined = Coalesced(examine)

    async def health(_: Request) -> Response:
        """Answer 200 if the service can do its work, or 503 with what is wrong.

        200 with the status `degraded` means that it can, and that somebody should look.
        """
        status, body = await examined()
        return Response(body, status, media_type="application/json")

    async def live(_: Request) -> Response:
        """Answer 200 to show that the process answers, and touch nothing else."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    # Starlette adds HEAD to GET, and monitors ask with HEAD
    app.add_route("/health", health, ["GET"], include_in_schema=False)
    app.add_route("/health/live", live, ["GET"], include_in_schema=False)


def figures(checks: Health, of_engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what /health knows, with the engine's figures behind it, and change nothing."""
    report = checks.report(anyio.run(checks.outcomes))
    results = report.pop("checks")
    return {**report, **of_engine, "checks": results}


def figure_lines(found: Mapping[str, Any], of_engine: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of `status` for a person, with the engine's figures in words."""
    shown = {
        "status": found["status"],
        "version": f"{found['version']} ({found['environment']})",
        **of_engine,
    }
    for label, value in shown.items():
        yield f"{label:<14} {value}"
    for name, result in found["checks"].items():
        details = ", ".join(f"{key} {value}" for key, value in result.get("details", {}).items())
        parts = [result["status"], result.get("message"), details]
        yield f"{name:<14} {'; '.join(filter(None, parts))}"


def in_bytes(count: int | None) -> str:
    if count is None:
        return "missing"
    return f"{count} bytes" if count < 1e6 else f"{count / 1e6:.1f} MB"


def ago(seconds: float) -> str:
    """Return how long ago it was, in the largest unit that says something."""
    units = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
    unit = next((name for name, length in units.items() if seconds >= length), "second")
    count = int(seconds // units[unit])
    return f"{count} {unit}{'' if count == 1 else 's'} ago"
