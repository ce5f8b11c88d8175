# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Order of a start.

A start forks at once. The child prepares everything and becomes the first worker, so each library
is imported once, and while another service still holds the database. The parent imports gunicorn
and nothing heavier, and leads the workers. So it is the process that gets SIGTERM. Where another
program runs around the server, this process prepares everything itself, and becomes that program.

The default is one worker. SQLite has one writer, and each worker needs memory of its own. So more
workers only help where Python is busy.
"""

import errno
import gc
import json
import logging.config
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from app.chassis import answers, logs
from app.chassis.errors import StartupError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.chassis.assembly import ChassisSettings
    from app.chassis.worker import Application

logger = logging.getLogger(__name__)

ROOT: Final = Path(__file__).parents[2]
APPLICATION: Final = "app.main:create_app"
MIGRATED: Final = "app.chassis.serve:create_migrated_app"
PROTOCOL: Final = "app.chassis.bounds:BoundedProtocol"


def start() -> NoReturn:
    """Start the production server. This process becomes the server.

    Raises:
        StartupError: A step before the server failed.
    """
    # Nearly all objects that imports make are kept, and it takes a while to look through them
    gc.disable()
    if answers.SUPERVISED:
        from app.chassis import assembly

        settings = load_settings()
        prepare(settings, settings.bind)
        execute(assembly.supervise(settings, production_command(settings)), settings)
    # The import before the fork makes gunicorn's memory shared
    from app.chassis import worker

    application = worker.Application()
    gc.collect()
    gc.freeze()
    channel, workers_end = socket.socketpair()
    first = os.fork()
    if first:
        workers_end.close()
        lead(application, first, channel)
    channel.close()
    become_worker(application, workers_end)


def become_worker(application: "Application", channel: socket.socket) -> NoReturn:
    """Prepare everything, report to the parent, and become the first worker.

    Raises:
        StartupError: A step failed.
    """
    from app.chassis import worker
    from app.chassis.sqlite import volume

    worker.end_with(os.getppid())
    # The parent is told too, and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = load_settings()
    begin(settings)
    lock = volume.acquire_lock(
        settings.database_path,
        settings.lock_timeout,
        process=os.getppid(),
        meanwhile=import_application,
    )
    import_application()
    # Alembic, which needs most of what is imported by now, would stay in the worker's memory
    run_apart(lambda: take_over(settings, settings.bind))
    os.chdir(ROOT)
    # HOME is another one since root was given up
    variables = {"HOME": os.environ.get("HOME", "/"), **server_variables(settings)}
    os.environ.update(variables)
    options = APPLICATION + "()", settings.bind, settings.workers
    report = {"options": options, "uid": os.geteuid(), "variables": variables}
    files = [lock, *(one.shared.file for one in logs.outputs[:1])]
    socket.send_fds(channel, [json.dumps(report).encode()], files)
    application.configure(*options)
    worker.serve(application, channel)


def import_application() -> None:
    """Import what the server will need. The server tells what is wrong with it."""
    with suppress(Exception):
        import_module(PROTOCOL.partition(":")[0])
        import_module(APPLICATION.partition(":")[0])


def lead(application: "Application", first: int, channel: socket.socket) -> NoReturn:
    """Wait until the first worker has prepared everything, and then lead all workers.

    Args:
        application: gunicorn's view of the application.
        first: Process id of the first worker. If it ends before its report, so does this process.
        channel: Socket of its report.
    """
    from app.chassis import worker

    def end_both(number: int, _: FrameType | None) -> NoReturn:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        end_child(first)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end_both)
    message, files, *_ = socket.recv_fds(channel, 1 << 16, 2)
    if not message:
        sys.exit(wait_for(first))
    report = json.loads(message)
    os.chdir(ROOT)
    os.environ.update(report["variables"])
    if os.geteuid() != report["uid"]:
        os.setgroups([])
        os.setgid(report["uid"])
        os.setuid(report["uid"])
    # The first of the files is the lock, which this process holds by it until it ends
    logs.capture(os.environ["LOG_FORMAT"], int(os.environ["LOG_LINES_PER_SECOND"]), *files[1:])
    application.configure(*report["options"])
    worker.lead(application, first, channel)


def run_apart(step: Callable[[], None]) -> None:
    """Run a step in a process of its own, whose imports end with it.

    An error is told there, and is this process's exit code.
    """
    from app.chassis import worker

    child = os.fork()
    if child == 0:
        worker.end_with(os.getppid())
        step()
        logs.flush()
        os._exit(0)
    try:
        code = wait_for(child)
    except SystemExit:
        end_child(child)
        raise
    if code:
        sys.exit(code)


def end_child(child: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def wait_for(child: int) -> int:
    """Return a child's exit code, as a shell gives it."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def serve(*, reload: bool) -> NoReturn:
    """Start the server for development. This process becomes the server.

    Raises:
        StartupError: A step before the server failed.
    """
    settings = load_settings()
    prepare(settings, development_bind(settings))
    execute(development_command(settings, reload=reload), settings)


def load_settings() -> "ChassisSettings":
    from app.chassis import assembly

    return assembly.settings_class().load()


def prepare(settings: "ChassisSettings", bind: str) -> None:
    """Prepare storage, lock, port, data and schema, before a server exists."""
    from app.chassis.sqlite import volume

    begin(settings)
    volume.acquire_lock(settings.database_path, settings.lock_timeout)
    take_over(settings, bind)


def begin(settings: "ChassisSettings") -> None:
    """Do what needs no lock."""
    from app.chassis.sqlite import volume

    # In a container this may be process 1, and a signal without a handler does not end that
    signal.signal(signal.SIGTERM, end)
    logs.capture(settings.log_format, settings.log_lines_per_second)
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    for warning in settings.warnings():
        logger.warning(warning)
    volume.prepare(settings)


def take_over(settings: "ChassisSettings", bind: str) -> None:
    """Do what needs the lock."""
    from app.chassis import assembly, migrate
    from app.chassis.sqlite import backup

    gc.freeze()
    gc.enable()
    require_free(bind)
    backup.tidy(settings.database_path)
    assembly.restore(settings)
    migrate.upgrade(settings.database_path)


def end(number: int, _: FrameType | None) -> NoReturn:
    """Undo what is under way, and exit with the code that a shell gives for the signal."""
    sys.exit(128 + number)


def execute(command: list[str], settings: "ChassisSettings") -> NoReturn:
    """Replace this process, so that the process that gets SIGTERM is the one that serves."""
    from app.chassis import assembly

    os.chdir(ROOT)
    environment = os.environ | server_variables(settings)
    logs.flush()
    os.execve(command[0], command, assembly.environment(settings, environment))


def server_variables(settings: "ChassisSettings") -> dict[str, str]:
    return {
        "LOG_LEVEL": settings.log_level,
        "LOG_FORMAT": settings.log_format,
        "LOG_LINES_PER_SECOND": str(settings.log_lines_per_second),
        "PYTHONUNBUFFERED": "1",
    }


def production_command(settings: "ChassisSettings") -> list[str]:
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


def development_command(settings: "ChassisSettings", *, reload: bool) -> list[str]:
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


def development_bind(settings: "ChassisSettings") -> str:
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
    from app.chassis import assembly, migrate

    threading.Thread(target=watch_revisions, args=(revisions(),), daemon=True).start()
    try:
        settings = assembly.settings_class().load()
        logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
        migrate.upgrade(settings.database_path)
    except StartupError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    return assembly.make_application()


def revisions() -> set[Path]:
    return set((ROOT / "migrations" / "versions").glob("*.py"))


def watch_revisions(before: set[Path]) -> None:
    """Touch a watched file when a revision has come, because uvicorn does not see a new file."""
    while revisions() == before:
        time.sleep(0.5)
    (ROOT / "migrations" / "env.py").touch()
