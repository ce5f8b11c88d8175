# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""State of the service in figures, for a person or a script.

The command is `python -m app status`.
"""

import inspect
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from app.chassis import assembly, backup, migrate, storage
from app.chassis.assembly import ChassisSettings
from app.chassis.database import DatabaseFile
from app.chassis.health import CheckResult, DatabaseHealth, failed, passed, worst
from app.chassis.sqlite import open_database, sqlite3
from app.chassis.verdict import HealthCheck, Status, Verdict


class Report(TypedDict):
    """Figures of the service. Sizes are bytes and ages seconds. An unknown figure is None."""

    status: Status
    version: str
    environment: str
    running: bool
    database: str
    database_bytes: int | None
    wal_bytes: int | None
    free_bytes: int | None
    revision: str | None
    newest_backup: str | None
    newest_backup_age: float | None
    checks: dict[str, CheckResult]


def report(settings: ChassisSettings) -> Report:
    """Return everything that /health knows, with the sizes and ages behind it. Change nothing."""
    database = settings.database_path
    built_in = DatabaseHealth(settings, DatabaseFile(database))
    monitor = assembly.Monitor(settings)
    checks: dict[str, HealthCheck] = {
        "database": built_in.database,
        "disk": built_in.disk,
        **monitor.health_checks,
    }
    results = {name: run(check) for name, check in checks.items()}
    newest = next(iter(backup.copies(backup.backups_directory(database), database)), None)
    return {
        "status": worst(results.values()),
        "version": settings.app_version,
        "environment": settings.environment,
        "running": storage.is_locked(database),
        "database": str(database),
        "database_bytes": size(database),
        "wal_bytes": size(database.with_name(f"{database.name}-wal")),
        "free_bytes": free_bytes(database.parent),
        "revision": revision(database),
        "newest_backup": None if newest is None else str(newest.path),
        "newest_backup_age": None
        if newest is None
        else (datetime.now(UTC) - newest.made).total_seconds(),
        "checks": results,
    }


def run(check: HealthCheck) -> CheckResult:
    try:
        details = check()
    except Verdict as verdict:
        return failed(verdict)
    assert not inspect.isawaitable(details), "the chassis's own checks are plain functions"
    return passed(details)


def size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def free_bytes(directory: Path) -> int | None:
    try:
        status = os.statvfs(directory)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def revision(database: Path) -> str | None:
    try:
        connection = open_database(database)
        try:
            return ", ".join(sorted(migrate.current_revisions(connection))) or None
        finally:
            connection.close()
    except sqlite3.DatabaseError:
        return None


def lines(found: Report) -> list[str]:
    """Return the report for a person, as lines."""
    age = found["newest_backup_age"]
    shown = [
        ("status", found["status"]),
        ("version", f"{found['version']} ({found['environment']})"),
        ("service", "running" if found["running"] else "stopped"),
        ("database", f"{found['database']}, {in_words(found['database_bytes'])}"),
        ("log (WAL)", in_words(found["wal_bytes"] or 0)),
        ("free space", in_words(found["free_bytes"])),
        ("revision", found["revision"] or "none"),
        (
            "newest backup",
            "none on the volume" if age is None else f"{found['newest_backup']}, {ago(age)}",
        ),
    ]
    for name, result in found["checks"].items():
        details = ", ".join(f"{key} {value}" for key, value in result.get("details", {}).items())
        parts = [result["status"], result.get("message", ""), details]
        shown.append((name, "; ".join(part for part in parts if part)))
    return [f"{label:<14} {value}" for label, value in shown]


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
