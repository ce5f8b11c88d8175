"""The start command, run as a real process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import httpx2 as httpx
import pytest

from app.chassis import assembly
from app.chassis.settings import PROJECT_ROOT
from app.chassis.testing import new_database, required_variables
from app.settings import Settings

from .databases import ABOUT_A_FILE

DEADLINE = 30.0

EXAMPLE = PROJECT_ROOT / "app" / "api" / "notes.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@cache
def address(directory: Path) -> str:
    """The database of all services that a test starts."""
    return new_database(directory)


class Service:
    """`python -m app` with nothing from the machine's environment but PATH."""

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self.port = free_port()
        self.log = (directory / f"log-{self.port}").open("w+", encoding="utf-8")
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            "PATH": os.environ["PATH"],
            **required_variables(Settings),
            "PORT": str(self.port),
            "DATABASE_URL": address(directory),
            **variables,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while text not in self.output():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def wait_until_healthy(self) -> "Service":
        deadline = time.monotonic() + DEADLINE
        while True:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.05)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


@pytest.fixture
def services(tmp_path: Path) -> Iterator[list[Service]]:
    started: list[Service] = []
    yield started
    for service in started:
        service.close()


@pytest.mark.long
def test_it_serves_and_stops(services: list[Service], tmp_path: Path) -> None:
    services.append(service := Service(tmp_path, LOG_FORMAT="json").wait_until_healthy())
    assert service.stop() == 0

    entries = [json.loads(line) for line in service.output().splitlines()]
    assert {"level", "message", "time"} <= set.intersection(*(set(entry) for entry in entries))
    assert any(entry.get("path") == "/health" and entry["request_id"] for entry in entries)

    services.append(again := Service(tmp_path).wait_until_healthy())
    # to the main process alone, as some supervisors do
    again.process.send_signal(signal.SIGINT)
    assert again.process.wait(DEADLINE / 3) == 0


@pytest.mark.long
@pytest.mark.skipif(
    not EXAMPLE.exists() or bool(assembly.signed_in()),
    reason="the example's routes are gone, or for people who have signed in",
)
def test_a_stop_ends_streams_and_keeps_what_was_written(
    services: list[Service], tmp_path: Path
) -> None:
    services.append(service := Service(tmp_path).wait_until_healthy())
    httpx.post(f"{service.url}/notes", json={"text": "kept"})
    with httpx.stream("GET", f"{service.url}/notes/stream", timeout=DEADLINE) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: note"
        service.process.send_signal(signal.SIGTERM)
        assert "event: shutdown" in list(lines)
    assert service.process.wait(DEADLINE) == 0

    services.append(again := Service(tmp_path).wait_until_healthy())
    assert [note["text"] for note in httpx.get(f"{again.url}/notes").json()] == ["kept"]


@ABOUT_A_FILE
@pytest.mark.long
def test_one_database_has_one_service(services: list[Service], tmp_path: Path) -> None:
    services.append(first := Service(tmp_path, "serve", "--reload").wait_until_healthy())
    services.append(impatient := Service(tmp_path, LOCK_TIMEOUT="0.2"))
    assert impatient.process.wait(DEADLINE) == 1
    assert "is in use by another service" in impatient.output()
    assert "Traceback" not in impatient.output()

    services.append(patient := Service(tmp_path, LOCK_TIMEOUT="60"))
    patient.wait_for("Waiting for the service that still uses")
    assert f"process {first.process.pid})" in patient.output()
    services.append(stopped := Service(tmp_path, LOCK_TIMEOUT="60"))
    stopped.wait_for("Waiting for the service that still uses")
    assert stopped.stop() == 128 + signal.SIGTERM
    assert "Traceback" not in stopped.output()

    first.stop()
    patient.wait_until_healthy()


@pytest.mark.parametrize("command", ["start", "serve"])
def test_an_occupied_port_is_refused_in_one_line(
    services: list[Service], tmp_path: Path, command: str
) -> None:
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        services.append(service := Service(tmp_path, command, PORT=str(port)))
        assert service.process.wait(DEADLINE) == 1
    assert service.output() == (
        f"PORT: {port} is in use; stop what listens there, or set PORT to another\n"
    )
    assert not (tmp_path / "app.db").exists()


@pytest.mark.long
def test_a_clean_stop_logs_no_problem(services: list[Service], tmp_path: Path) -> None:
    services.append(service := Service(tmp_path, WORKERS="2", LOG_FORMAT="json"))
    service.wait_until_healthy()
    before = len(service.output())
    assert service.stop() == 0
    entries = [json.loads(line) for line in service.output()[before:].splitlines()]
    assert {entry["level"] for entry in entries} == {"info"}
    assert not [entry for entry in entries if "rror" in entry["message"]]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_no_worker_is_left_when_the_server_is_killed(
    services: list[Service], tmp_path: Path
) -> None:
    services.append(service := Service(tmp_path).wait_until_healthy())
    service.process.kill()
    service.process.wait()

    # the lock is free as soon as the last process that inherited it has ended
    services.append(Service(tmp_path, LOCK_TIMEOUT="10").wait_until_healthy())


def test_the_start_loads_no_web_framework() -> None:
    """It would take longer than everything else before the server."""
    script = """
import sys
from app.chassis import serve
from app.settings import Settings
Settings(_env_file=None)
assert not {"alembic", "fastapi", "sqlalchemy"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, check=True)


def test_the_servers_first_process_loads_no_server() -> None:
    """It never serves, and what it has in memory is there for as long as the service runs."""
    script = """
import sys
from app.chassis import gunicorn, worker
needless = {"asyncio", "ctypes", "fastapi", "pydantic", "sqlalchemy", "uvicorn"}
assert not needless & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, check=True)


def test_bad_settings_end_it_with_78_and_every_reason(
    services: list[Service], tmp_path: Path
) -> None:
    services.append(
        service := Service(tmp_path, ENVIRONMENT="production", SECRET_KEY="hunter2", WORKERS="no")
    )

    assert service.process.wait(DEADLINE) == 78
    output = service.output()
    assert "SECRET_KEY: " in output
    assert "WORKERS: " in output
    assert "hunter2" not in output
    assert "Traceback" not in output
    assert not (tmp_path / "app.db").exists()
