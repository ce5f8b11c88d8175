# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""The worker that gunicorn starts for every process that serves."""

import asyncio
import ctypes
import os
import signal
import sys
from typing import Any, Final

from uvicorn_worker import UvicornWorker

from app.chassis import deadlines

PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that the kernel sends a process when its parent has died."""


class Worker(UvicornWorker):  # type: ignore[misc]  # the package has no types
    """uvicorn under gunicorn: exits non-zero when start-up fails, and is replaced when it hangs."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012, the base class declares it so
        "loop": "uvloop",
        "http": "httptools",
        "lifespan": "on",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": deadlines.REQUESTS,
    }

    def init_process(self) -> None:
        """End with gunicorn even if that is killed; a worker left over keeps port and lock."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != self.ppid:
                sys.exit(1)
        super().init_process()

    def _install_sigquit_handler(self) -> None:
        """Stop on SIGQUIT, which gunicorn sends its workers when it is sent SIGINT itself.

        The base class only notes the signal; the server in it would never hear of it.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, signal.raise_signal, signal.SIGTERM)
