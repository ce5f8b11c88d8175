"""Clients that ask for much and read nothing."""

import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from support.service import FORMS, Service

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

CROWD = 100


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Path:
    return installed()


@pytest.fixture
def data(project: Path, tmp_path: Path) -> Iterator[Path]:
    """A database whose stream of notes is longer than any buffer."""
    data = tmp_path / "data"
    with Service(project, data, [*FORMS["exec"], "migrate"]) as command:
        assert command.ended() == 0, command.output()
    with closing(sqlite3.connect(data / "app.db")) as connection:
        rows = [("x" * 2000,)] * 5000
        connection.executemany(
            "INSERT INTO notes (text, created_at) VALUES (?, '2026-01-01')", rows
        )
        connection.commit()
    return data


def open_stream(service: Service) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", service.port))
    client.sendall(b"GET /notes/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client


def test_a_stop_does_not_wait_for_a_client_that_reads_nothing(
    project: Path, data: Path, record_property: Record
) -> None:
    with Service(project, data, LOG_FORMAT="json").wait_until_healthy() as service:
        with open_stream(service):
            time.sleep(3)  # until every buffer is full
            started = time.monotonic()
            service.terminate()
            assert service.ended() == 0
        seconds = time.monotonic() - started
        assert seconds < 12, "it took 19 s when it was the server's own deadline that ended it"
        assert {entry["level"] for entry in service.entries()} == {"info"}
    record_property("seconds until it stopped", f"{seconds:.1f}")


def test_a_crowd_that_reads_nothing_leaves_turns_to_others(
    project: Path, data: Path, record_property: Record
) -> None:
    with ExitStack() as stack:
        service = stack.enter_context(Service(project, data).wait_until_healthy())
        for _ in range(CROWD):
            stack.enter_context(open_stream(service))
        waits = []
        for _ in range(50):
            started = time.monotonic()
            assert service.client.get("/health/live").status_code == 200
            waits.append(time.monotonic() - started)
        service.terminate()
        assert service.ended() == 0
    assert sorted(waits)[len(waits) // 2] < 1
    record_property(f"longest wait beside {CROWD} streams", f"{max(waits):.2f} s")
