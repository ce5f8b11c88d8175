# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Start of the service. This process prepares everything, and then becomes the server.

Each step of the start is in the module that it belongs to. The default is one worker. Each needs
memory of its own, so more of them only help where Python is busy.
"""

import errno
import logging.config
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from app.chassis import answers, assembly, logs, migrate
from app.chassis.assembly import ChassisSettings
from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

APPLICATION: Final = "app.main:create_app"
MIGRATED: Final = "app.chassis.serve:create_migrated_app"

PROTOCOL: Final = "app.chassis.bounds:BoundedProtocol"


def start(settings: ChassisSettings) -> NoReturn:
    """Start the production server. This process becomes the server.

    Raises:
        StartupError: A step before the server failed.
    """
    prepare(settings, settings.bind)
    execute(assembly.supervise(settings, production_command(settings)), settings)


def serve(settings: ChassisSettings, *, reload: bool) -> NoReturn:
    """Start the server for development. This process becomes the server.

    Raises:
        StartupError: A step before the server failed.
    """
    prepare(settings, f"127.0.0.1:{settings.port}")
    execute(development_command(settings, reload=reload), settings)


def prepare(settings: ChassisSettings, bind: str) -> None:
    """Prepare storage, lock, port, data and schema, before a server exists."""
    # In a container this is process 1, and a signal without a handler does not end that
    signal.signal(signal.SIGTERM, end)
    logs.capture(settings.log_format, settings.log_lines_per_second)
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    for warning in settings.warnings():
        logger.warning(warning)
    assembly.engine.prepare(settings, settings.lock_timeout)
    require_free(bind)
    assembly.restore(settings)
    migrate.upgrade(settings)


def end(number: int, _: FrameType | None) -> NoReturn:
    """Undo what is under way, and exit with the code that a shell gives for the signal."""
    sys.exit(128 + number)


def execute(command: list[str], settings: ChassisSettings) -> NoReturn:
    """Replace this process, so that the process that gets SIGTERM is the one that serves."""
    os.chdir(PROJECT_ROOT)
    environment = os.environ | {
        "LOG_LEVEL": settings.log_level,
        "LOG_FORMAT": settings.log_format,
        "LOG_LINES_PER_SECOND": str(settings.log_lines_per_second),
        "PYTHONUNBUFFERED": "1",
    }
    logs.flush()
    os.execve(command[0], command, assembly.environment(settings, environment))


def production_command(settings: ChassisSettings) -> list[str]:
    """Return the command of the server that deployments run.

    Its first process gets SIGTERM and sets the exit code.
    """
    return [
        sys.executable,
        "-m",
        "gunicorn",
        *assembly.engine.server_options(settings),
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
        f"--timeout-graceful-shutdown={answers.REQUEST_SECONDS}",
        *options,
    ]


def require_free(bind: str) -> None:
    """Refuse a port on which another program listens, before the database is changed.

    Raises:
        StartupError: The port is taken, or may not be used.
    """
    host, _, port = bind.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # The servers set it too. It allows a port that another server has just left
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
    threading.Thread(target=watch_revisions, args=(revisions(),), daemon=True).start()
    try:
        settings = assembly.settings_class().load()
        logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
        migrate.upgrade(settings)
    except StartupError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    return assembly.make_application()


def revisions() -> set[Path]:
    return set((PROJECT_ROOT / "migrations" / "versions").glob("*.py"))


def watch_revisions(before: set[Path]) -> None:
    """Touch a watched file when a revision has come, because uvicorn does not see a new file."""
    while revisions() == before:
        time.sleep(0.5)
    (PROJECT_ROOT / "migrations" / "env.py").touch()
