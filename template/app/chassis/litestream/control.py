# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Litestream's control socket: HTTP with JSON over a Unix socket.

Only the standard library is imported here, because gunicorn's first process uses it too.
Litestream's `status` command says "replicating" whatever the bucket answers, and its metrics
count no failed upload; what these two requests say was seen to be true with a wrong key, a
missing bucket and a server that is down (Litestream 0.5.17).
"""

import json
import socket
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

ANSWER_TIMEOUT: Final = 1.0
"""Seconds that Litestream may take for what it knows without asking the bucket."""


class ControlError(Exception):
    """Litestream does not answer, or says why it could not do what was asked."""


class BucketWaitError(ControlError):
    """Litestream runs, and is too busy with a bucket that does not answer to say anything."""


class Connection(HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("litestream", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def confirmed_at(control_socket: Path, database: Path) -> datetime | None:
    """When every change of the database was last known to be in the bucket.

    It follows the clock for as long as there is nothing left to send.

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
    """Send every change to the bucket and wait until it is there.

    Args:
        control_socket: Where Litestream answers.
        database: The database file.
        timeout: Seconds that it may take.

    Raises:
        ControlError: It is not; the message says why.
    """
    body = {"path": str(database), "wait": True, "timeout": timeout}
    ask(control_socket, "POST", "/sync", body, timeout + ANSWER_TIMEOUT)


def ask(
    control_socket: Path, method: str, path: str, body: object, timeout: float
) -> dict[str, Any]:
    connection = Connection(control_socket, timeout)
    try:
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
