# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Last step before a stop, in which the bucket confirms every change.

Litestream sends the remaining changes when it stops. But it does not send the changes of the
first second after a start, because it has not looked at them by then.
"""

import logging
import os
import time
from pathlib import Path

from app.chassis import answers
from app.chassis.litestream.control import ControlError, confirm

logger = logging.getLogger(__name__)


def flush() -> None:
    """Send every change to the bucket, within the time that a stop leaves for it."""
    control_socket = os.environ.get("LITESTREAM_SOCKET")
    if control_socket is None:
        return
    started = time.monotonic()
    try:
        confirm(Path(control_socket), Path(os.environ["DATABASE_PATH"]), answers.FLUSH_SECONDS)
    except ControlError as error:
        logger.error("Replication: stopping before the bucket has every change: %s", error)
        return
    logger.info("The bucket has every change (%.2f s)", time.monotonic() - started)
