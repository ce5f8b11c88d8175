# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Worker that gunicorn starts for every process that serves.

gunicorn's first process imports this module too, and never serves. So only the worker imports what
only a worker needs, above all uvicorn.
"""

import gc
import os
import signal
import sys
from types import FrameType
from typing import Final

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker as BaseWorker

from app.chassis import answers, logs

PR_SET_PDEATHSIG: Final = 1
"""Option of prctl(2) for the signal that the kernel sends a process when its parent has died."""


class Worker(BaseWorker):  # type: ignore[misc]  # The package has no types
    """Worker that runs uvicorn, exits non-zero if start-up fails, and is replaced if it hangs."""

    def init_process(self) -> None:
        """End with gunicorn, even if gunicorn is killed.

        A worker left over would keep the port and the lock.
        """
        if sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != self.ppid:
                sys.exit(1)
        super().init_process()

    def init_signals(self) -> None:
        """Undo what gunicorn's first process does on a signal. uvicorn adds its own handlers."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        # The first process sends SIGQUIT to its workers when it is sent SIGINT itself, and uvicorn
        # hears of SIGTERM
        signal.signal(signal.SIGQUIT, lambda *_: signal.raise_signal(signal.SIGTERM))

    def load_wsgi(self) -> None:
        """Import everything that serving needs, and make the server."""
        gc.disable()  # Nearly all objects that imports make are kept
        super().load_wsgi()
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
        self.server = Server(config)
        # The imports stay, so no request has to wait while the collector looks through them
        gc.freeze()
        gc.enable()

    def run(self) -> None:
        """Serve until a signal, and then end as other processes do, with what is done at exit.

        After its stop uvicorn sends itself every signal again, to end by it.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note_stop)
        # The sockets lose gunicorn's wrapper, which finds them closed at the end and logs an error
        self.server.run(sockets=[listener.sock for listener in self.sockets])
        if not self.server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

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
