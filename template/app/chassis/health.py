"""`/health` proves the database; `/health/live` only that the process answers.

A pooled `SELECT 1` goes on answering after the file is deleted, replaced, or its volume
unmounted. This opens the file afresh, takes the write lock, reads the schema's revision
and lets go again, in about 0.1 ms.
"""

import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, NotRequired, TypedDict

import anyio
import anyio.to_thread
from fastapi import APIRouter, Response

from app.chassis import migrate
from app.chassis.database import Database, identity
from app.chassis.settings import ChassisSettings
from app.chassis.sqlite import open_database, sqlite3

logger = logging.getLogger(__name__)

CHECK_TIMEOUT: Final = 3.0
"""Seconds until a check that has not answered counts as failed."""

LOCK_TIMEOUT: Final = 2.0
"""Seconds to wait for the database's write lock."""

MIN_FREE_BYTES: Final = 16 * 1024 * 1024

HealthCheck = Callable[[], "Awaitable[None] | None"]
"""Raises Unhealthy when something is wrong. A plain function runs in a thread."""


class Unhealthy(Exception):  # noqa: N818, it is the verdict
    """The check failed; the message is shown to whoever asks, so it names no internals."""


class CheckResult(TypedDict):
    status: Literal["ok", "failed"]
    message: NotRequired[str]


class Health(TypedDict):
    status: Literal["ok", "failed"]
    version: str
    environment: str
    checks: dict[str, CheckResult]


class DatabaseHealth:
    """What /health asks about the database; made once, when the service starts."""

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self.known = migrate.known_revisions()
        self.heads = migrate.head_revisions()

    def database(self) -> None:
        """The file is there, is a database, can be written, and has this code's schema."""
        if identity(self.path) is None:
            raise Unhealthy("the database file is missing")
        try:
            connection = open_database(self.path, busy_timeout=LOCK_TIMEOUT)
            try:
                connection.execute("BEGIN IMMEDIATE")
                current = migrate.current_revisions(connection)
                connection.execute("ROLLBACK")
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            logger.warning("The database check failed: %s", error)
            raise Unhealthy(explain(error)) from error
        if not migrate.is_migrated(current, self.known, self.heads):
            raise Unhealthy("the database is not at this release's schema")

    def disk(self) -> None:
        """The volume has room for more than a few transactions."""
        try:
            status = os.statvfs(self.path.parent)
        except OSError as error:
            raise Unhealthy("the database's directory is missing") from error
        if status.f_bavail * status.f_frsize < MIN_FREE_BYTES:
            raise Unhealthy("the volume is full")


def explain(error: sqlite3.DatabaseError) -> str:
    """What is wrong in words of our own: the driver's text can contain paths and SQL."""
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


async def run_check(name: str, check: HealthCheck, limiter: anyio.CapacityLimiter) -> CheckResult:
    """Run one check, bounded in time whatever it does."""
    try:
        with anyio.fail_after(CHECK_TIMEOUT):
            if inspect.iscoroutinefunction(check):
                await check()
            else:
                await anyio.to_thread.run_sync(check, limiter=limiter, abandon_on_cancel=True)
    except Unhealthy as verdict:
        return {"status": "failed", "message": str(verdict)}
    except TimeoutError:
        return {"status": "failed", "message": f"no answer within {CHECK_TIMEOUT:.0f} s"}
    except Exception:
        logger.exception("The health check %s raised", name)
        return {"status": "failed", "message": "the check itself failed"}
    return {"status": "ok"}


def make_router(
    settings: ChassisSettings, database: Database, extra: Mapping[str, HealthCheck]
) -> APIRouter:
    """The two health routes.

    Args:
        settings: For the version and environment shown.
        database: What the built-in checks prove.
        extra: The service's own checks by name; see HealthCheck.
    """
    router = APIRouter(prefix="/health", tags=["health"])
    built_in = DatabaseHealth(database)
    checks: dict[str, HealthCheck] = {
        "database": built_in.database,
        "disk": built_in.disk,
        **extra,
    }
    # Of their own: the threads for routes may all be waiting for the database.
    limiters = {name: anyio.CapacityLimiter(1) for name in checks}

    # monitors ask with HEAD
    @router.head("", response_model=None, include_in_schema=False)
    @router.get("", response_model=None)
    async def health(response: Response) -> Health:
        """Whether the service can do its work: 200, or 503 with what is wrong."""
        results: dict[str, CheckResult] = {}

        async def run(name: str) -> None:
            results[name] = await run_check(name, checks[name], limiters[name])

        async with anyio.create_task_group() as group:
            for name in checks:
                group.start_soon(run, name)
        failed = any(result["status"] != "ok" for result in results.values())
        response.status_code = 503 if failed else 200
        return {
            "status": "failed" if failed else "ok",
            "version": settings.app_version,
            "environment": settings.environment,
            "checks": {name: results[name] for name in checks},
        }

    @router.head("/live", include_in_schema=False)
    @router.get("/live")
    async def live() -> dict[str, str]:
        """That the process answers; touches nothing else."""
        return {"status": "ok"}

    return router
