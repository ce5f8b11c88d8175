# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Configuration file of gunicorn, named by app/chassis/serve.py.

The parent process imports this and nothing heavier. Settings arrive as command-line
options and as the three LOG_ variables.
"""

import gc
import os

from app.chassis import answers, logs
from app.chassis.checks import finding as finding  # This import makes HEALTH before the fork

worker_class = "app.chassis.worker.Worker"
timeout = 30
graceful_timeout = answers.WORKER_SECONDS
keepalive = 65
control_socket_disable = True
# The directory is in memory where possible, because a worker that waits for a slow disk would
# look as if it hung
MEMORY = "/dev/shm"  # noqa: S108, its name on every Linux
worker_tmp_dir = MEMORY if os.access(MEMORY, os.W_OK) else None
accesslog = None
if own := os.environ.pop("SERVICE_STDOUT", ""):
    # The process around the server has another stdout
    os.dup2(int(own), 1)
    os.close(int(own))
form = os.environ.get("LOG_FORMAT", "text")
logs.capture(form, int(os.environ.get("LOG_LINES_PER_SECOND", "400")))
logconfig_dict = logs.config(os.environ.get("LOG_LEVEL", "INFO"), form)


def pre_fork(_: object, __: object) -> None:
    """Keep the collector away from this process's memory, so that workers can share it.

    A look for garbage would write into the memory.
    """
    gc.freeze()


def on_exit(_: object) -> None:
    """Flush the last changes when the workers have ended and nothing is written any more."""
    # The import comes only now, because it brings the settings' libraries with it
    from app.chassis import assembly

    assembly.flush()
