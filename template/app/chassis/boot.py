# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Order of the steps of the start. Each step is in the module that it belongs to."""

import logging.config
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from app.chassis import backup, logs, migrate, output, replication, server, storage
from app.chassis.replication import ChassisSettings
from app.chassis.settings import PROJECT_ROOT

logger = logging.getLogger(__name__)


def start(settings: ChassisSettings) -> NoReturn:
    """Start the production server. This process becomes the server.

    Raises:
        StartupError: A step before the server failed.
    """
    prepare(settings, settings.bind)
    execute(replication.supervise(settings, server.production_command(settings)), settings)


def serve(settings: ChassisSettings, *, reload: bool) -> NoReturn:
    """Start the server for development. This process becomes the server.

    Raises:
        StartupError: A step before the server failed.
    """
    prepare(settings, server.development_bind(settings))
    execute(server.development_command(settings, reload=reload), settings)


def prepare(settings: ChassisSettings, bind: str) -> None:
    """Prepare storage, lock, port, data and schema, before a server exists."""
    # In a container this is process 1, and a signal without a handler does not end that
    signal.signal(signal.SIGTERM, end)
    logs.capture(settings.log_format, settings.log_lines_per_second)
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    for warning in settings.warnings():
        logger.warning(warning)
    storage.prepare(settings)
    storage.acquire_lock(settings.database_path, settings.lock_timeout)
    server.require_free(bind)
    backup.tidy(settings.database_path)
    replication.restore(settings)
    migrate.upgrade(settings.database_path)


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
    output.flush()
    os.execve(command[0], command, replication.environment(settings, environment))
