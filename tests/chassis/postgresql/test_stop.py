"""A stop with the delay in which the edge still sends requests, run as real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from app.chassis import answers, migrate
from app.chassis.settings import PROJECT_ROOT
from app.settings import Settings

from ..production import REQUIRED
from ..test_boot import free_port

DEADLINE = 30.0

DELAY = 3.0

START = """
from app.chassis import cli, serve

serve.APPLICATION = "slow:create_slow_app"
cli.main([])
"""

SLOW = """
import asyncio

from app.chassis import EventStream, Events, ServerSentEvent
from app.main import create_app


def create_slow_app():
    app = create_app()

    @app.get("/slow/{seconds}")
    async def slow(seconds: float) -> str:
        print("under way")
        await asyncio.sleep(seconds)
        return "finished"

    @app.get("/ticks")
    async def ticks() -> EventStream:
        async def events() -> Events:
            print("streaming")
            while True:
                yield ServerSentEvent(event="tick", data={})
                await asyncio.sleep(0.1)

        return EventStream(events())

    return app
"""


class Service:
    def __init__(self, directory: Path, url: str, **variables: str) -> None:
        (directory / "slow.py").write_text(SLOW, encoding="utf-8")
        self.port, self.log = free_port(), directory / "log"
        self.address = f"http://127.0.0.1:{self.port}"
        environment = {
            "PATH": os.environ["PATH"],
            **REQUIRED,
            "PYTHONPATH": f"{PROJECT_ROOT}:{directory}",
            "DATABASE_URL": url,
            "PORT": str(self.port),
            "STOP_DELAY": f"{DELAY:g}",
            **variables,
        }
        with self.log.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START],
                cwd=PROJECT_ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.wait_until(self.is_healthy)

    def wait_until(self, found: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not found():
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, self.log.read_text(encoding="utf-8")
            time.sleep(0.05)

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> float:
        self.process.send_signal(signal.SIGTERM)
        return time.monotonic()

    def answered(self, seconds: float) -> Iterator[int]:
        """Ask over a new connection, again and again, for some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield httpx.get(f"{self.address}/health/live").status_code
            time.sleep(0.05)

    def logged(self, text: str) -> bool:
        return text in self.log.read_text(encoding="utf-8")


Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path, settings: Settings, url: str) -> Iterator[Start]:
    migrate.upgrade(settings)
    started: list[Service] = []

    def start(**variables: str) -> Service:
        started.append(service := Service(tmp_path, url, **variables))
        return service

    yield start
    for service in started:
        # gunicorn's workers end with their first process
        service.process.kill()
        service.process.wait()


def test_the_delay_fits_into_the_time_of_a_stop() -> None:
    needed = answers.DELAY_SECONDS + answers.WORKER_SECONDS
    assert answers.REQUEST_SECONDS < answers.WORKER_SECONDS
    assert needed + 5 <= answers.DRAINING_SECONDS


@pytest.mark.long
def test_new_connections_are_answered_during_the_delay(start: Start) -> None:
    service = start(WORKERS="2")
    began = service.stop()
    statuses = list(service.answered(DELAY - 0.5))
    assert set(statuses) == {200}
    assert len(statuses) > 10
    assert service.process.wait(DEADLINE) == 0
    assert DELAY <= time.monotonic() - began < DELAY + 5
    assert service.logged(f"Going on for {DELAY:g} s")
    assert not service.logged("Traceback")


@pytest.mark.long
def test_requests_and_streams_go_on_during_the_delay_and_requests_after_it(start: Start) -> None:
    service = start()
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(ticks, service)
        service.wait_until(lambda: service.logged("streaming"))
        # It begins before the stop, and ends after the delay
        slow = pool.submit(httpx.get, f"{service.address}/slow/{DELAY + 3}", timeout=DEADLINE)
        service.wait_until(lambda: service.logged("under way"))
        began = service.stop()
        time.sleep(DELAY / 2)
        late = pool.submit(httpx.get, f"{service.address}/slow/{DELAY}", timeout=DEADLINE)
        assert [one.result().json() for one in (slow, late)] == ["finished"] * 2
        assert service.process.wait(DEADLINE) == 0
        ended, last = stream.result()
    assert ended - began >= DELAY - 0.2
    assert last == "shutdown"


def ticks(service: Service) -> tuple[float, str]:
    """Read a stream to its end, and return when that was, and its last event."""
    last = ""
    with httpx.stream("GET", f"{service.address}/ticks", timeout=DEADLINE) as answer:
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            last = value if name == "event" else last
    return time.monotonic(), last


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_delay(start: Start, number: signal.Signals) -> None:
    service = start(STOP_DELAY="15")
    began = service.stop()
    service.wait_until(lambda: service.logged("Going on for 15 s"))
    service.process.send_signal(number)
    assert service.process.wait(DEADLINE) == 0
    assert time.monotonic() - began < 10


@pytest.mark.long
def test_a_worker_that_dies_during_the_delay_is_replaced(start: Start) -> None:
    service = start()
    service.stop()
    service.wait_until(lambda: service.logged("Going on"))
    pid = service.process.pid
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    os.kill(int(worker), signal.SIGKILL)
    service.wait_until(service.is_healthy)
    assert service.process.wait(DEADLINE) == 0


@pytest.mark.long
def test_without_a_delay_it_stops_at_once(start: Start) -> None:
    service = start(STOP_DELAY="0")
    began = service.stop()
    assert service.process.wait(DEADLINE) == 0
    assert time.monotonic() - began < DELAY
    assert not service.logged("Going on")


@pytest.mark.long
def test_a_request_without_end_is_cut_in_time(start: Start) -> None:
    """The whole delay, and a request that takes too long, fit before the platform kills."""
    service = start(STOP_DELAY=str(answers.DELAY_SECONDS))
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(httpx.get, f"{service.address}/slow/60", timeout=60)
        service.wait_until(lambda: service.logged("under way"))
        began = service.stop()
        assert service.process.wait(answers.DRAINING_SECONDS) == 0
        took = time.monotonic() - began
        assert slow.exception() or slow.result().status_code >= 500
    assert answers.DELAY_SECONDS + answers.REQUEST_SECONDS <= took < answers.DRAINING_SECONDS - 5
