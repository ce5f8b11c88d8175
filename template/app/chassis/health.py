# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Health routes. `/health` checks the database, `/health/live` only that the process answers.

A pooled `SELECT 1` goes on answering after the file is deleted or replaced, or its volume is
unmounted. So `/health` opens the file afresh, takes the write lock, reads the schema's revision
and releases the lock. Requests at the same time share one check, which begins after they asked.
"""

import asyncio
import inspect
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import Context
from typing import Final, Generic, NotRequired, TypedDict, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from app.chassis import migrate, verdict
from app.chassis.database import DatabaseFile
from app.chassis.settings import CoreSettings
from app.chassis.sqlite import open_database, sqlite3
from app.chassis.verdict import Degraded, Details, Status, Verdict

# Services that come from the first release import these two from here
from app.chassis.verdict import HealthCheck as HealthCheck
from app.chassis.verdict import Unhealthy as Unhealthy

logger = logging.getLogger(__name__)

CHECK_TIMEOUT: Final = 3.0
"""Seconds until a check without an answer counts as failed."""

LOCK_TIMEOUT: Final = 2.0
"""Seconds to wait for the database's write lock."""


Limiters = Mapping[str, anyio.CapacityLimiter]


Result = TypeVar("Result")


class Coalesced(Generic[Result]):
    """Single flight of a function, which runs only once at a time.

    All callers get the result of a run that began after they asked.

    Args:
        function: The function to run. It has to end.
    """

    def __init__(self, function: Callable[[], Awaitable[Result]]) -> None:
        self.function = function
        self.next: asyncio.Future[Result] | None = None
        self.runs: asyncio.Task[None] | None = None

    async def __call__(self) -> Result:
        """Return the result of the next run, or raise its exception."""
        if self.next is None:
            self.next = asyncio.get_running_loop().create_future()
        mine = self.next
        if self.runs is None or self.runs.done():
            # The run belongs to no request, because the first caller may be gone before its end
            self.runs = asyncio.create_task(self.run(), context=Context())
        return await asyncio.shield(mine)

    async def run(self) -> None:
        """Run the function until nobody waits."""
        while (future := self.next) is not None:
            self.next = None
            try:
                future.set_result(await self.function())
            except asyncio.CancelledError:
                future.cancel()
                raise
            except Exception as error:
                future.set_exception(error)


class CheckResult(TypedDict):
    status: Status
    message: NotRequired[str]
    details: NotRequired[Details]


Outcome = tuple[CheckResult, Exception | None]
"""Result of a check, and the error that it raised, which only the log may show."""


class Health(TypedDict):
    status: Status
    version: str
    environment: str
    checks: dict[str, CheckResult]


class DatabaseHealth:
    """Checks of /health for the database and its volume, made once when the service starts."""

    def __init__(self, settings: CoreSettings, file: DatabaseFile) -> None:
        self.settings = settings
        self.path = settings.database_path
        self.file = file
        self.known = migrate.known_revisions()
        self.heads = migrate.head_revisions()

    def database(self) -> None:
        """Check that the file is there, is a database, is writable, and has this code's schema."""
        if fault := self.file.fault():
            raise Unhealthy(fault)
        if self.file.is_read_only():
            raise Unhealthy("the database is read-only")
        try:
            connection = open_database(self.path, busy_timeout=LOCK_TIMEOUT)
            try:
                connection.execute("BEGIN IMMEDIATE")
                current = migrate.current_revisions(connection)
                connection.execute("ROLLBACK")
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            raise Unhealthy(explain(error)) from error
        if not migrate.is_migrated(current, self.known, self.heads):
            raise Unhealthy("the database is not at this release's schema")

    def disk(self) -> None:
        """Check that the volume has room for more than a few transactions."""
        try:
            status = os.statvfs(self.path.parent)
        except OSError as error:
            raise Unhealthy("the database's directory is missing") from error
        free = status.f_bavail * status.f_frsize
        if free < self.settings.min_free_bytes:
            raise Unhealthy("the volume is full")
        if free < self.settings.low_free_bytes:
            raise Degraded("the volume is nearly full")


def explain(error: sqlite3.DatabaseError) -> str:
    """Return a message of our own, because the driver's text can contain paths and SQL."""
    reasons = {
        sqlite3.SQLITE_BUSY: "the database is locked",
        sqlite3.SQLITE_READONLY: "the database is read-only",
        sqlite3.SQLITE_FULL: "the volume is full",
        sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
        sqlite3.SQLITE_NOTADB: "the file is not a database",
        sqlite3.SQLITE_CORRUPT: "the database is damaged",
    }
    code: int = getattr(error, "sqlite_errorcode", 0)
    return reasons.get(code & 0xFF, "the database does not answer")


async def run_check(check: HealthCheck, limiter: anyio.CapacityLimiter) -> Outcome:
    """Run one check with a time limit, whatever it does."""
    try:
        with anyio.fail_after(CHECK_TIMEOUT):
            if inspect.iscoroutinefunction(check):
                details = await check()
            else:
                details = await anyio.to_thread.run_sync(
                    check, limiter=limiter, abandon_on_cancel=True
                )
    except Verdict as verdict:
        return failed(verdict), verdict
    except TimeoutError:
        return {"status": "failed", "message": f"no answer within {CHECK_TIMEOUT:.0f} s"}, None
    except Exception as error:
        return {"status": "failed", "message": "the check itself failed"}, error
    return passed(details), None


def passed(details: Details | None) -> CheckResult:
    return {"status": "ok"} if details is None else {"status": "ok", "details": details}


def failed(verdict: Verdict) -> CheckResult:
    result: CheckResult = {"status": verdict.status, "message": str(verdict)}
    return result if verdict.details is None else {**result, "details": verdict.details}


def worst(results: Iterable[CheckResult]) -> Status:
    """Return the status of the whole, which is that of its worst part."""
    order: tuple[Status, ...] = ("ok", "degraded", "failed")
    return max((result["status"] for result in results), key=order.index, default="ok")


async def check_all(checks: Mapping[str, HealthCheck], limiters: Limiters) -> dict[str, Outcome]:
    """Run the checks at the same time, and return the outcomes in the order of the checks."""
    results: dict[str, Outcome] = {}

    async def run(name: str) -> None:
        results[name] = await run_check(checks[name], limiters[name])

    async with anyio.create_task_group() as group:
        for name in checks:
            group.start_soon(run, name)
    return {name: results[name] for name in checks}


class Changes:
    """Log of what is wrong and when it is well again, once a change and not once a request.

    Each worker follows what it sees itself, and does not repeat what another has just logged.
    """

    def __init__(self) -> None:
        self.seen = bytes(verdict.HEALTH).rstrip(b"\0")

    def note(self, outcomes: Mapping[str, Outcome]) -> None:
        """Log the state if it differs from the last one. Figures in it do not count."""
        told, unexpected = [], None
        for name, (result, error) in outcomes.items():
            if result["status"] != "ok":
                expected = isinstance(error, Verdict)
                cause = error.__cause__ if isinstance(error, Verdict) else error
                unexpected = unexpected or (None if expected else error)
                reason = f"{result.get('message')} ({cause})" if cause else result.get("message")
                told.append(f"{name} {result['status']}: {reason}")
        text = "; ".join(told)
        size = len(verdict.HEALTH)
        state = re.sub(rb"[0-9]+", b"", text.encode(errors="replace"))[:size]
        if state == self.seen:
            return
        self.seen = state
        if state == bytes(verdict.HEALTH).rstrip(b"\0"):
            return
        verdict.HEALTH[:] = state.ljust(size, b"\0")
        status = worst(result for result, _ in outcomes.values())
        level = {"ok": logging.INFO, "degraded": logging.WARNING, "failed": logging.ERROR}[status]
        logger.log(level, "/health: %s", text or "all is well again", exc_info=unexpected)


def add_routes(
    app: FastAPI, settings: CoreSettings, file: DatabaseFile, extra: Mapping[str, HealthCheck]
) -> None:
    """Add the two health routes.

    They are Starlette's own routes, because every other request is matched against them first.

    Args:
        app: The application.
        settings: The limits, and the version and environment shown.
        file: The database file that the service has started with.
        extra: Further checks by name. See HealthCheck.
    """
    built_in = DatabaseHealth(settings, file)
    checks: dict[str, HealthCheck] = {
        "database": built_in.database,
        "disk": built_in.disk,
        **extra,
    }
    # The checks have threads of their own, because all the routes' may wait for the database
    limiters = {name: anyio.CapacityLimiter(1) for name in checks}

    changes = Changes()

    async def examine() -> tuple[int, bytes]:
        outcomes = await check_all(checks, limiters)
        changes.note(outcomes)
        results = {name: result for name, (result, _) in outcomes.items()}
        status = worst(results.values())
        body: Health = {
            "status": status,
            "version": settings.app_version,
            "environment": settings.environment,
            "checks": results,
        }
        return 503 if status == "failed" else 200, bytes(JSONResponse(body).body)

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
