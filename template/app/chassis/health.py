# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Health of the service, as routes for monitors and as `python -m app status` for people.

`/health` checks the database, and `/health/live` only that the process answers. A pooled `SELECT 1`
goes on answering after the file is deleted or replaced, or its volume is unmounted. So `/health`
opens the file afresh, takes the write lock, reads the schema's revision and releases the lock.
Requests that come together share one check, which starts after all of them have asked.
"""

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from contextvars import Context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, NotRequired, TypedDict, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from app.chassis import migrate
from app.chassis.checks import finding
from app.chassis.checks.finding import Degraded as Degraded
from app.chassis.checks.finding import Details, HealthProblem, HealthStatus
from app.chassis.checks.finding import HealthCheck as HealthCheck
from app.chassis.checks.finding import Unhealthy as Unhealthy
from app.chassis.settings import CoreSettings
from app.chassis.sqlite import backup, volume
from app.chassis.sqlite.driver import open_database, sqlite3
from app.chassis.sqlite.file import DatabaseFile, result_code

logger = logging.getLogger(__name__)

CHECK_TIMEOUT: Final = 3.0
"""Seconds until a check without an answer counts as failed."""

LOCK_TIMEOUT: Final = 2.0
"""Seconds to wait for the database's write lock."""

LEVELS: Final[dict[HealthStatus, int]] = {
    "ok": logging.INFO,
    "degraded": logging.WARNING,
    "failed": logging.ERROR,
}
"""Level at which each status is logged. The worse the status, the higher the level."""

REASONS: Final = {
    sqlite3.SQLITE_BUSY: "the database is locked",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_FULL: "the volume is full",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
    sqlite3.SQLITE_NOTADB: "the file is not a database",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
}
"""Messages for SQLite's errors, because the driver's own text can contain paths and SQL."""

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
        settings: The limits, and the version and environment shown.
        file: The database file that the service has started with.
        extra: Further checks by name. See HealthCheck.
    """

    def __init__(
        self, settings: CoreSettings, file: DatabaseFile, extra: Mapping[str, HealthCheck]
    ) -> None:
        self.settings = settings
        self.path = settings.database_path
        self.file = file
        self.known = migrate.known_revisions()
        self.heads = migrate.head_revisions()
        self.checks = {"database": self.database, "disk": self.disk, **extra}
        # Each check has a thread of its own, because all threads of the routes may be waiting
        self.limiters = {name: anyio.CapacityLimiter(1) for name in self.checks}

    def database(self) -> None:
        """Check that the file is there, is a database, is writable, and has this code's schema."""
        if fault := self.file.fault():
            raise Unhealthy(fault)
        if self.file.is_read_only():
            raise Unhealthy("the database is read-only")
        try:
            with closing(open_database(self.path, busy_timeout=LOCK_TIMEOUT)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                current = migrate.current_revisions(connection)
                connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            reason = REASONS.get(result_code(error), "the database does not answer")
            raise Unhealthy(reason) from error
        if not migrate.is_migrated(current, self.known, self.heads):
            raise Unhealthy("the database is not at this release's schema")

    def disk(self) -> None:
        """Check that the volume has room for more than a few transactions."""
        try:
            free = volume.free_bytes(self.path.parent)
        except OSError as error:
            raise Unhealthy("the database's directory is missing") from error
        if free < self.settings.min_free_bytes:
            raise Unhealthy("the volume is full")
        if free < self.settings.low_free_bytes:
            raise Degraded("the volume is nearly full")

    async def outcomes(self) -> dict[str, Outcome]:
        """Run the checks at the same time, and return the outcome of each."""
        pairs = zip(self.checks.values(), self.limiters.values(), strict=True)
        outcomes = await asyncio.gather(*(run_check(*pair) for pair in pairs))
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


def figures(settings: CoreSettings, extra: Mapping[str, HealthCheck]) -> dict[str, Any]:
    """Return what /health knows, with the sizes and ages behind it, and change nothing.

    Sizes are in bytes and ages in seconds. A figure that nobody can know is None.
    """
    database = settings.database_path
    health = Health(settings, DatabaseFile(database), extra)
    report = health.report(anyio.run(health.outcomes))
    checks = report.pop("checks")
    newest = known(lambda: backup.newest(database))
    return {
        **report,
        "running": volume.holder(database) is not None,
        "database": str(database),
        "database_bytes": known(lambda: health.file.path.stat().st_size),
        "wal_bytes": known(lambda: health.file.log.stat().st_size),
        "free_bytes": known(lambda: volume.free_bytes(database.parent)),
        "revision": known(lambda: revision(database)),
        "newest_backup": newest and str(newest.path),
        "newest_backup_age": newest and (datetime.now(UTC) - newest.made).total_seconds(),
        "checks": checks,
    }


def known(measure: Callable[[], Result]) -> Result | None:
    try:
        return measure()
    except (OSError, sqlite3.DatabaseError):
        return None


def revision(database: Path) -> str | None:
    with closing(open_database(database)) as connection:
        return ", ".join(sorted(migrate.current_revisions(connection))) or None


def figure_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of `status` for a person."""
    age = found["newest_backup_age"]
    copy = "none on the volume" if age is None else f"{found['newest_backup']}, {ago(age)}"
    shown = {
        "status": found["status"],
        "version": f"{found['version']} ({found['environment']})",
        "service": "running" if found["running"] else "stopped",
        "database": f"{found['database']}, {in_words(found['database_bytes'])}",
        "log (WAL)": in_words(found["wal_bytes"] or 0),
        "free space": in_words(found["free_bytes"]),
        "revision": found["revision"] or "none",
        "newest backup": copy,
    }
    for label, value in shown.items():
        yield f"{label:<14} {value}"
    for name, result in found["checks"].items():
        details = ", ".join(f"{key} {value}" for key, value in result.get("details", {}).items())
        parts = [result["status"], result.get("message"), details]
        yield f"{name:<14} {'; '.join(filter(None, parts))}"


def in_words(count: int | None) -> str:
    if count is None:
        return "missing"
    return f"{count} bytes" if count < 1e6 else f"{count / 1e6:.1f} MB"


def ago(seconds: float) -> str:
    """Return how long ago it was, in the largest unit that says something."""
    units = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
    unit = next((name for name, length in units.items() if seconds >= length), "second")
    count = int(seconds // units[unit])
    return f"{count} {unit}{'' if count == 1 else 's'} ago"
