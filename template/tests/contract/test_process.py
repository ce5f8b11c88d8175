# Belongs to the template: your own tests go into tests/, beside this directory.
"""Tests of the service as a real process on its own database, which serves and stops."""

import os
import signal
import socket
import sys
import time
from subprocess import Popen

import httpx2 as httpx

from app.chassis.settings import PROJECT_ROOT
from app.chassis.testing import outside
from app.settings import Settings

from .conftest import HERE
from .probes import count, make_counter

SECONDS = 60.0
"""Seconds for a start, and for a stop, on a machine that is busy with other things."""


def is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def use_and_stop(client: httpx.Client, process: Popen[bytes], settings: Settings) -> None:
    until = time.monotonic() + SECONDS
    while not is_healthy(client):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    outside(settings, make_counter)
    assert [client.post("/contract/write").json() for _ in range(3)] == [1, 2, 3]
    with client.stream("GET", "/contract/stream") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: first"
        process.send_signal(signal.SIGTERM)
        assert "event: shutdown" in list(lines)
    assert process.wait(SECONDS) == 0


def test_it_serves_and_a_stop_ends_streams_and_keeps_the_data(
    variables: dict[str, str], settings: Settings
) -> None:
    """Start it with the probes, and otherwise as `python -m app` does. pytest shows its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(HERE), str(PROJECT_ROOT)])
    ours = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PORT": port}
    with (
        Popen([sys.executable, "-m", "probes"], cwd=PROJECT_ROOT, env=variables | ours) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client,
    ):
        try:
            use_and_stop(client, process, settings)
        finally:
            process.kill()
    assert outside(settings, count) == 3
