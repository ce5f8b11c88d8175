"""A client that writes numbered notes one after the other and remembers what was acknowledged."""

import sqlite3
import threading
import time
from pathlib import Path

import httpx2 as httpx

from support.service import Service


class Writer:
    """Writes for as long as it is told to; `acknowledged` has each number and when."""

    def __init__(self, service: Service, first: int = 0, pause: float = 0.01) -> None:
        self.acknowledged: list[tuple[int, float]] = []
        self.refused: list[int] = []
        self._service = service
        self._next = first
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self._service.url, timeout=30) as client:
            while not self._stop.is_set():
                number = self._next
                try:
                    answer = client.post("/notes", json={"text": str(number)})
                except httpx.TransportError:
                    # Nobody knows whether it was written. The number is not used again.
                    self._next += 1
                    time.sleep(0.05)
                    continue
                self._next += 1
                if answer.status_code == 201:
                    self.acknowledged.append((number, time.monotonic()))
                else:
                    self.refused.append(answer.status_code)
                self._stop.wait(self._pause)

    @property
    def next(self) -> int:
        """The number that would be written now."""
        return self._next

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def numbers(database: Path) -> list[int]:
    """What is in the database's file, in the order of writing."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT text FROM notes ORDER BY id").fetchall()
    finally:
        connection.close()
    return [int(text) for (text,) in rows]
