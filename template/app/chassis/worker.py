# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Worker that serves, and its way into gunicorn.

gunicorn's first process imports this module too, and never serves. So only the worker imports what
only a worker needs, above all uvicorn.
"""

import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.sock import BaseSocket, create_sockets
from gunicorn.workers.base import Worker as BaseWorker

from app.chassis import answers, logs
from app.chassis.checks import finding as finding  # This import makes HEALTH before the fork

if TYPE_CHECKING:
    from uvicorn import Server

PR_SET_PDEATHSIG: Final = 1
"""Option of prctl(2) for the signal that the kernel sends a process when its parent has died."""

CONFIGURATION: Final = "python:app.chassis.gunicorn"

MOST_SOCKETS: Final = 16
"""Maximum number of descriptors that the first worker is given."""


class Worker(BaseWorker):  # type: ignore[misc]  # The package has no types
    """Worker that runs uvicorn, exits non-zero if start-up fails, and is replaced if it hangs."""

    channel: socket.socket | None = None
    """Socket from which the first worker gets what other workers inherit."""

    def init_process(self) -> None:
        """End with gunicorn, even if gunicorn is killed.

        A worker left over would keep the port and the lock.
        """
        end_with(self.ppid)
        super().init_process()

    def init_signals(self) -> None:
        """Undo what gunicorn's first process does on a signal. uvicorn adds its own handlers."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        # The first process sends SIGQUIT to its workers when it is sent SIGINT itself
        signal.signal(signal.SIGQUIT, stop)

    def load_wsgi(self) -> None:
        """Import everything that serving needs."""
        gc.disable()
        super().load_wsgi()
        self.server = self.make_server()
        gc.enable()
        # The imports stay, so no request has to wait while the collector looks through them
        gc.freeze()

    def make_server(self) -> "Server":
        from uvicorn import Config, Server

        from app.chassis.bounds import BoundedProtocol

        config = Config(
            self.wsgi,
            loop="uvloop",
            http=BoundedProtocol,
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=self.cfg.backlog,
            limit_max_requests=self.max_requests,
            timeout_keep_alive=self.cfg.keepalive,
            # The beat comes every second, because uvicorn reads the wall clock, which may be
            # set back by a minute
            timeout_notify=-sys.maxsize,
            callback_notify=self.beat,
            timeout_graceful_shutdown=answers.REQUEST_SECONDS,
        )
        return Server(config)

    def run(self) -> None:
        """Serve until a signal, and then end as other processes do, with what is done at exit.

        After its stop uvicorn sends itself every signal again, to end by it.
        """
        if self.channel:
            self.inherit(self.channel)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note_stop)
        # The sockets lose gunicorn's wrapper, which finds them closed at the end and logs an error
        self.server.run(sockets=[listener.sock for listener in self.sockets])
        if not self.server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def inherit(self, channel: socket.socket) -> None:
        """Take the listening sockets, and the file by which gunicorn sees that this is alive."""
        _, files, *_ = socket.recv_fds(channel, 1, MOST_SOCKETS)
        channel.close()
        if not files:
            sys.exit()  # gunicorn's first process has ended
        os.dup2(files[0], self.tmp.fileno())
        self.sockets = create_sockets(self.cfg, self.log, files[1:])

    def note_stop(self, _: int, __: FrameType | None) -> None:
        self.server.should_exit = True
        if self.server.force_exit:
            # This is the second signal. Unfinished work would only be cancelled now, with a
            # traceback in the log.
            logs.flush()
            os._exit(0)

    async def beat(self) -> None:
        """Tell gunicorn that the event loop runs."""
        self.notify()


class Application(WSGIApplication):  # type: ignore[misc]  # The package has no types
    """gunicorn's view of the application, made before the settings are known."""

    def load_config(self) -> None:
        """Read no command line, and no file of gunicorn's own."""

    def configure(self, uri: str, bind: str, workers: int) -> None:
        self.app_uri = uri
        self.load_config_from_module_name_or_filename(CONFIGURATION)
        self.cfg.set("bind", bind)
        self.cfg.set("workers", workers)
        self.cfg.set("default_proc_name", uri)
        self.chdir()


def serve(application: Application, channel: socket.socket) -> NoReturn:
    """Serve as the first worker. gunicorn finds this process when it is ready, see `lead`.

    A worker that cannot import the application ends. Then gunicorn starts another, which says why.
    """
    log = application.cfg.logger_class(application.cfg)
    worker = make_worker(application, log, [], os.getppid())
    worker.channel = channel
    worker.log.info("Booting worker with pid: %s", os.getpid())
    try:
        worker.init_process()
    except Exception:
        if worker.booted:
            raise
    sys.exit()


def lead(application: Application, first: int, channel: socket.socket) -> NoReturn:
    """Become gunicorn's first process, with a worker that runs already.

    Args:
        application: Application with its configuration.
        first: Process id of the worker.
        channel: Socket on which it waits.
    """

    def when_ready(arbiter: Arbiter) -> None:
        worker = make_worker(application, arbiter.log, arbiter.LISTENERS, os.getpid())
        files = [worker.tmp.fileno(), *(one.fileno() for one in arbiter.LISTENERS)]
        with channel, suppress(OSError):  # It has ended already
            socket.send_fds(channel, [b"!"], files)
            arbiter.worker_age = worker.age
            arbiter.WORKERS[first] = worker
            worker.pid = first

    application.cfg.set("when_ready", when_ready)
    gc.enable()
    application.run()
    sys.exit()


def make_worker(
    application: Application, log: Logger, sockets: list[BaseSocket], parent: int
) -> Worker:
    config = application.cfg
    return Worker(1, parent, sockets, application, config.timeout / 2, config, log)


def end_with(parent: int) -> None:
    """Send this process SIGTERM when its parent dies, where the kernel can do so."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)


def stop(_: int, __: FrameType | None) -> None:
    """Stop as on SIGTERM, of which uvicorn hears."""
    signal.raise_signal(signal.SIGTERM)
