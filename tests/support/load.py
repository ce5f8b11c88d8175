"""Clients that write and read whatever happens to a service, and what it says of its health."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2 as httpx

from support.service import DEADLINE, Service

NOTICED = 5.0
"""Seconds in which /health has to tell of a fault, and of its end."""

WRITERS = 3


@dataclass
class Answer:
    """What a request came to, and when it was under way (by the monotonic clock)."""

    method: str
    text: str
    status: int
    body: object
    headers: httpx.Headers
    began: float
    ended: float


@dataclass
class Load:
    """Clients that write and one that reads without a pause, whatever the answer."""

    url: str
    text: str
    answers: list[Answer] = field(default_factory=list)
    broken_off: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)

    def send(self, name: str) -> None:
        """Until stopped: notes whose texts are the client's name and a number."""
        number = 0
        with httpx.Client(base_url=self.url, timeout=DEADLINE) as client:
            while not self._stopped.wait(0.01):
                began = time.monotonic()
                number += 1
                text = "" if name == "reader" else f"{name} {number} {self.text}"
                try:
                    if name == "reader":
                        answer = client.get("/notes?limit=1")
                    else:
                        answer = client.post("/notes", json={"text": text})
                except httpx.TransportError:
                    self.broken_off += 1
                    continue
                ended = time.monotonic()
                self.answers.append(
                    Answer(
                        answer.request.method,
                        text,
                        answer.status_code,
                        answer.json(),
                        answer.headers,
                        began,
                        ended,
                    )
                )

    @contextmanager
    def running(self) -> Iterator["Load"]:
        names = [*(f"writer {number}" for number in range(WRITERS)), "reader"]
        clients = [threading.Thread(target=self.send, args=(name,)) for name in names]
        for client in clients:
            client.start()
        try:
            yield self
        finally:
            self._stopped.set()
            for client in clients:
                client.join()

    def wait_for(self, status: int, count: int, since: float) -> None:
        """Until so many writes that began after the given time have had the status."""
        deadline = time.monotonic() + DEADLINE
        while len([a for a in self.between(since, "POST") if a.status == status]) < count:
            assert time.monotonic() < deadline, self.statuses(since)
            time.sleep(0.02)

    def between(self, since: float, method: str, until: float = float("inf")) -> list[Answer]:
        return [
            answer
            for answer in list(self.answers)
            if answer.method == method and answer.began >= since and answer.ended <= until
        ]

    def statuses(self, since: float, until: float = float("inf")) -> dict[str, set[int]]:
        return {
            method: {answer.status for answer in self.between(since, method, until)}
            for method in ("GET", "POST")
        }

    def written(self) -> list[str]:
        return [answer.text for answer in self.between(0, "POST") if answer.status == 201]


def health(service: Service) -> tuple[int, str]:
    """The status of /health, and every failed check's message."""
    answer = service.client.get("/health")
    failed = [check.get("message", "") for check in answer.json()["checks"].values()]
    return answer.status_code, "; ".join(filter(None, failed))


def wait_for_health(service: Service, status: int, within: float = NOTICED) -> tuple[float, str]:
    """Seconds until /health says so, and what it says."""
    began = time.monotonic()
    while True:
        found, message = health(service)
        elapsed = time.monotonic() - began
        if found == status:
            return elapsed, message
        assert elapsed < within, f"{found} after {elapsed:.1f} s: {message}"
        time.sleep(0.05)


@contextmanager
def during(fault: Iterator[None]) -> Iterator[None]:
    next(fault)
    try:
        yield
    finally:
        next(fault, None)
