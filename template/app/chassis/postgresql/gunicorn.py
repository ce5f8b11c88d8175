# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Configuration file of gunicorn where other replicas take over, named by the engine.

A platform's edge sends requests to a container for some seconds after it has told it to stop. So
the whole service goes on as before for STOP_DELAY seconds, and only then hears of the stop.
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
