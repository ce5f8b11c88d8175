# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""How the application is served: the commands, and what gunicorn runs them with.

One worker by default: SQLite has one writer, and more workers, each with its memory, only help
where Python is busy.
"""

import sys
from typing import Final

from app.chassis import deadlines
from app.chassis.settings import ChassisSettings

APPLICATION: Final = "app.main:create_app"

PROTOCOL: Final = "app.chassis.bounds:BoundedProtocol"


def production_command(settings: ChassisSettings) -> list[str]:
    """The server that deployments run; its first process gets SIGTERM and the exit code."""
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
    """One process on this machine only, restarted on a change of the code if asked."""
    options = ["--reload", "--reload-dir=app"] if reload else []
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
        APPLICATION,
    ]
