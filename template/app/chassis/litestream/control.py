# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Client of Litestream's control socket, which speaks HTTP with JSON over a Unix socket.

It imports nothing large, because gunicorn's first process uses it too.
Litestream's `status` command says "replicating" whatever the bucket answers, and its metrics
count no failed upload. The two requests here were seen to tell the truth with a wrong key, a
missing bucket and a server that is down (Litestream 0.5.17).
"""

import json
import logging
import os
import socket
import time
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from app.chassis import answers

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT: Final = 1.0
"""Seconds that Litestream may take for an answer without asking the bucket."""


class ControlError(Exception):
    """Error of a Litestream that does not answer, or says why it could not do what was asked."""


class BucketWaitError(ControlError):
    """Error of a Litestream that runs, but waits for the bucket and therefore does not answer."""


def confirmed_at(control_socket: Path, database: Path) -> datetime | None:
    """Return when every change of the database was last known to be in the bucket.

    This time follows the clock for as long as there is nothing left to send.

    Raises:
        ControlError: Litestream does not answer, or does not replicate the database.
    """
    answer = ask(control_socket, "GET", "/list", None, ANSWER_TIMEOUT)
    for entry in answer["databases"]:
        if entry["path"] == str(database):
            moment = entry.get("last_sync_at")
            return datetime.fromisoformat(moment) if moment else None
    raise ControlError("Litestream does not replicate this database")


def confirm(control_socket: Path, database: Path, timeout: int) -> None:
    """Send every change to the bucket, and wait up to `timeout` seconds until it is there.

    Raises:
        ControlError: The changes are not there. The message says why.
    """
    body = {"path": str(database), "wait": True, "timeout": timeout}
    ask(control_socket, "POST", "/sync", body, timeout + ANSWER_TIMEOUT)


def flush() -> None:
    """Send every change to the bucket before a stop, within the time that the stop leaves for it.

    Litestream sends the remaining changes when it stops. But it does not send the changes of the
    first second after a start, because it has not looked at them by then.
    """
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


def ask(
    control_socket: Path, method: str, path: str, body: object, timeout: float
) -> dict[str, Any]:
    connection = HTTPConnection("litestream")
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(str(control_socket))
        connection.request(method, path, body=None if body is None else json.dumps(body))
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    except TimeoutError as error:
        raise BucketWaitError("Litestream is waiting for the bucket") from error
    except (OSError, HTTPException, ValueError) as error:
        raise ControlError(f"Litestream does not answer ({type(error).__name__})") from error
    finally:
        connection.close()
    if response.status != 200:
        raise ControlError(str(answer.get("error", response.reason)))
    return answer
