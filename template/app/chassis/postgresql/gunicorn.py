# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Configuration file of gunicorn for a service whose other replicas take over.

A platform's edge still sends requests for some seconds to a container that was told to stop. So the
whole service keeps serving for STOP_DELAY seconds, and only then begins to stop.
"""

import os
import signal
from typing import Any

from app.chassis.gunicorn import *  # noqa: F403, gunicorn reads the names of this module


def when_ready(arbiter: Any) -> None:
    """Have gunicorn's first process act on SIGTERM later, but at once on a second one or SIGINT.

    gunicorn queues a signal, and calls `handle_term` from its main loop, where it may log. The
    alarm is a signal that gunicorn leaves alone, and a worker does not inherit it.
    """
    stop, delay = arbiter.handle_term, float(os.environ.get("STOP_DELAY") or 0)

    def go_on() -> None:
        arbiter.handle_term = stop
        arbiter.log.info("Going on for %g s, until no new request is sent here", delay)
        signal.signal(signal.SIGALRM, lambda _, frame: arbiter.signal(signal.SIGTERM, frame))
        signal.setitimer(signal.ITIMER_REAL, delay)

    if delay:
        arbiter.handle_term = go_on
