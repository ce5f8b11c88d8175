"""A log that nobody reads, that cannot be written, or that is more than the platform takes."""

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.service import DEADLINE, Service, router_added

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

RATE = 3000
SECONDS = 3
CLIENTS = 24
LIMIT = 400
IMPORTANT = 100

REQUEST = b"GET /talk/silent HTTP/1.1\r\nHost: localhost\r\n\r\n"

TALK = """
import logging
import sys

from fastapi import APIRouter

router = APIRouter(prefix="/talk")


@router.get("/silent")
async def silent() -> str:
    return "silent"


@router.get("/warn")
async def warn() -> str:
    logging.getLogger(__name__).warning("A warning among requests")
    print("printed to stdout")
    print("printed to stderr", file=sys.stderr)
    return "warned"


@router.get("/print")
async def print_much() -> str:
    print("x" * 200_000)
    print("y" * 200_000, file=sys.stderr)
    return "printed"
"""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed()
    with router_added(project, "talk", TALK):
        yield project


class Pipe:
    """The log's other end, which reads when told to."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.lines: list[tuple[float, bytes]] = []
        self.thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        with os.fdopen(self.reader, "rb") as file:
            self.lines += ((time.monotonic(), line) for line in file)

    def entries(self) -> list[dict[str, object]]:
        return [json.loads(line) for _, line in self.lines if line.startswith(b"{")]

    def most_in_a_second(self) -> int:
        times = [moment for moment, _ in self.lines]
        first = most = 0
        for last, moment in enumerate(times):
            while moment - times[first] >= 1:
                first += 1
            most = max(most, last - first + 1)
        return most


def load(service: Service) -> int:
    """Ask for so many answers a second, and return how many came; none is missing."""
    rounds = RATE * SECONDS // CLIENTS
    answers: Counter[bytes] = Counter()

    def ask() -> None:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", service.port), timeout=DEADLINE) as client:
            for done in range(rounds):
                client.sendall(REQUEST)
                answer = client.recv(65536)
                while not answer.endswith(b'"silent"'):
                    answer += client.recv(65536)
                answers[answer[9:12]] += 1
                time.sleep(max(0, started + done * CLIENTS / RATE - time.monotonic()))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {b"200": rounds * CLIENTS}
    return rounds * CLIENTS


def require_a_stop(service: Service) -> float:
    started = time.monotonic()
    service.terminate()
    assert service.ended() == 0
    return time.monotonic() - started


@pytest.mark.parametrize("workers", [1, 4])
def test_requests_beyond_the_limit_are_counted(
    project: Path, tmp_path: Path, record_property: Record, workers: int
) -> None:
    pipe = Pipe()
    with Service(
        project, tmp_path / "data", output=pipe.writer, LOG_FORMAT="json", WORKERS=str(workers)
    ) as service:
        os.close(pipe.writer)
        pipe.thread.start()
        service.wait_until_healthy()
        started = time.monotonic()
        loading = threading.Thread(target=load, args=(service,))
        loading.start()
        warnings = 0
        while loading.is_alive():
            assert service.client.get("/talk/warn").status_code == 200
            warnings += 1
            time.sleep(0.2)
        seconds = time.monotonic() - started
        require_a_stop(service)
        pipe.thread.join()
    entries = pipe.entries()
    requests = [entry for entry in entries if entry.get("path") == "/talk/silent"]
    others = [entry for entry in entries if entry.get("path") not in {None, "/talk/silent"}]
    told = [entry for entry in entries if entry["logger"] == "app.chassis.logs"]
    counted = sum(entry.get("requests", 0) for entry in told)
    assert len(requests) + len(others) + counted >= RATE * SECONDS + warnings
    of_requests = [entry for entry in told if "requests" in entry]
    assert of_requests
    assert all(set(entry["statuses"]) == {"200"} for entry in of_requests)
    assert all(0 < entry["p50_ms"] <= entry["p99_ms"] for entry in of_requests)
    assert not any("warnings" in entry or "dropped" in entry for entry in told)
    assert len(told) <= seconds + 2
    assert pipe.most_in_a_second() <= LIMIT + IMPORTANT
    written = Counter(entry["message"] for entry in entries)
    assert written["A warning among requests"] == warnings
    record_property(
        f"{workers} workers",
        f"{RATE * SECONDS / seconds:.0f} requests/s: {len(requests)} written, {counted} counted, "
        f"at most {pipe.most_in_a_second()} lines in a second",
    )


@pytest.mark.parametrize("workers", [1, 4])
def test_a_log_that_nobody_reads(
    project: Path, tmp_path: Path, record_property: Record, workers: int
) -> None:
    pipe = Pipe()
    with Service(
        project, tmp_path / "data", output=pipe.writer, LOG_FORMAT="json", WORKERS=str(workers)
    ) as service:
        os.close(pipe.writer)
        service.wait_until_healthy()
        for _ in range(20):
            assert service.client.get("/talk/print").status_code == 200
        asked = load(service)
        assert service.client.get("/health").status_code == 200
        if workers == 1:
            seconds = require_a_stop(service)
            assert seconds < 10
            record_property("seconds until it stopped", f"{seconds:.1f}")
            os.close(pipe.reader)
            return
        pipe.thread.start()
        # until a worker's waiting lines are written, its next ones are counted only
        awaited = {"app.chassis.logs", "A warning among requests"}
        deadline = time.monotonic() + DEADLINE
        while not awaited <= {e[key] for e in pipe.entries() for key in ("logger", "message")}:
            assert time.monotonic() < deadline, pipe.lines[-5:]
            service.client.get("/talk/warn")
            time.sleep(0.1)
        require_a_stop(service)
        pipe.thread.join()
    told = [entry for entry in pipe.entries() if entry["logger"] == "app.chassis.logs"]
    requests = [entry for entry in pipe.entries() if entry.get("path") == "/talk/silent"]
    missing = sum(entry.get("requests", 0) + entry.get("dropped", 0) for entry in told)
    assert len(requests) + missing >= asked
    assert "A warning among requests" in {entry["message"] for entry in pipe.entries()}


@pytest.mark.parametrize("fault", ["closed", "full disk"])
def test_a_log_that_cannot_be_written(project: Path, tmp_path: Path, fault: str) -> None:
    reader, output = os.pipe()
    if fault == "full disk":
        os.close(output)
        output = os.open("/dev/full", os.O_WRONLY)
    with Service(
        project, tmp_path / "data", output=output, LOG_FORMAT="json", WORKERS="2"
    ) as service:
        os.close(output)
        service.wait_until_healthy()
        os.close(reader)
        service.client.get("/talk/print")
        load(service)
        assert service.client.get("/health").status_code == 200
        require_a_stop(service)


def test_a_start_whose_log_nobody_reads(project: Path, tmp_path: Path) -> None:
    reader, output = os.pipe()
    os.set_blocking(output, False)
    with suppress(BlockingIOError):
        while True:
            os.write(output, bytes(4096))
    os.set_blocking(output, True)
    with Service(project, tmp_path / "data", output=output, LOG_FORMAT="json") as service:
        os.close(output)
        service.wait_until_healthy()
        require_a_stop(service)
    os.close(reader)
