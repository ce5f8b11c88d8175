# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Commands that serve the application, in production and in development.

The default is one worker. SQLite has one writer, and each worker needs memory of its own. So more
workers only help where Python is busy.
"""

import errno
import logging.config
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.chassis import deadlines
from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT, ChassisSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

APPLICATION: Final = "app.main:create_app"
MIGRATED: Final = "app.chassis.server:create_migrated_app"

PROTOCOL: Final = "app.chassis.bounds:BoundedProtocol"


def production_command(settings: ChassisSettings) -> list[str]:
    """Return the command of the server that deployments run.

    Its first process gets SIGTERM and sets the exit code.
    """
    return [
        sys.executable,
        "-m",
        "gunicorn",
        "--config=python:app.chassis.gunicorn",
        f"--bind={settings.bind}",
        f"--workers={settings.workers}",
        f"{APPLICATION}()",
    ]


def development_command(settings: ChassisSettings, *, reload: bool) -> list[str]:
    """Return the command of one process on this machine only, restarted on new code if asked."""
    watched = ["--reload", "--reload-dir=app", "--reload-dir=migrations"]
    options = [*(watched if reload else []), MIGRATED if reload else APPLICATION]
    return [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "--host=127.0.0.1",
        f"--port={settings.port}",
        f"--http={PROTOCOL}",
        "--no-access-log",
        "--no-server-header",
        "--no-proxy-headers",
        f"--timeout-graceful-shutdown={deadlines.REQUESTS}",
        *options,
    ]


def development_bind(settings: ChassisSettings) -> str:
    return f"127.0.0.1:{settings.port}"


def require_free(bind: str) -> None:
    """Refuse a port on which another program listens, before anything is changed.

    Raises:
        StartupError: The port is taken, or may not be used.
    """
    host, _, port = bind.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # The servers do so too, because a port that another server has just left is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else error.strerror
            raise StartupError(
                f"PORT: {port} {reason}; stop what listens there, or set PORT to another"
            ) from None


def create_migrated_app() -> "FastAPI":
    """Make the application after a change of the code, with the new revisions.

    The process that watches the code holds the database's lock meanwhile.
    """
    from app.chassis import logs, migrate
    from app.settings import Settings

    threading.Thread(target=watch_revisions, args=(revisions(),), daemon=True).start()
    try:
        settings = Settings.load()
        logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
        migrate.upgrade(settings.database_path)
    except StartupError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    from app.main import create_app

    return create_app()


def revisions() -> set[Path]:
    return set((PROJECT_ROOT / "migrations" / "versions").glob("*.py"))


def watch_revisions(before: set[Path]) -> None:
    """Touch a watched file when a revision has come, because uvicorn does not see a new file."""
    while revisions() == before:
        time.sleep(0.5)
    (PROJECT_ROOT / "migrations" / "env.py").touch()
