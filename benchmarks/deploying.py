"""What a deploy takes: one service ends, and the next one starts on the same volume."""

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from benchmarks import sides
from benchmarks.runs import Effort, Result, Target, interleave

CLIENTS = 8
STREAMS = 20
BEFORE = 1.0
"""Seconds for which the clients ask the old service."""
PAUSE = 0.005
GONE = (OSError, http.client.HTTPException)
IMPORT = "import app.main, app.chassis.bounds, uvicorn, uvloop"
IMPORTING = "one import of its libraries"


def deploy(effort: Effort) -> Result:
    """SIGTERM to a service under 8 clients and 20 streams, until the next one answers."""
    result = Result()
    project = sides.project("default")
    with sides.workspace() as directory:
        data = directory / "data"
        sides.seed(project, data, 1000)
        python, variables = project / ".venv/bin/python", sides.variables(data, 8000)

        def importing() -> float:
            return sides.run(python, "-c", IMPORT, cwd=project, **variables)

        importing()
        gaps, imports = interleave(effort.pairs, lambda: gap(project, data), importing)
    target = Target("at most", 1.2)
    result.add("last answer to first answer", "s", gaps, imports, IMPORTING, target)
    return result


def gap(project: Path, data: Path) -> float:
    """Seconds from the last 200 of the old service to the first of the new one.

    Raises:
        RuntimeError: One of them does not start, or does not answer.
    """
    asked = [sides.free_port(), sides.free_port()]
    answered: list[list[float]] = [[], []]
    over = threading.Event()
    clients = [
        threading.Thread(target=ask, args=(asked, answered, over), daemon=True)
        for _ in range(CLIENTS)
    ]
    with ExitStack() as stack:
        old = stack.enter_context(sides.ours(project, data, port=asked[0]))
        old.wait()
        for _ in range(STREAMS):
            stack.enter_context(closing(open_stream(old.port)))
        stack.callback(over.set)
        for client in clients:
            client.start()
        time.sleep(BEFORE)
        os.kill(old.pid, signal.SIGTERM)
        new = stack.enter_context(sides.ours(project, data, port=asked[1]))
        new.wait()
        for client in clients:
            client.join(sides.DEADLINE)
        if not all(answered) or old.process.wait(sides.DEADLINE):
            raise RuntimeError(f"The deploy failed:\n{old.log.read_text()[-2000:]}")
    before, after = answered
    return min(after) - max(before)


def ask(asked: list[int], answered: list[list[float]], over: threading.Event) -> None:
    """Note every answer of the old service, until it ends, and one of the new service."""
    old, new = asked
    with suppress(*GONE):
        for moment in answers(old, over):
            answered[0].append(moment)
    while not over.is_set():
        with suppress(*GONE):
            for moment in answers(new, over):
                answered[1].append(moment)
                return
        time.sleep(PAUSE)


def answers(port: int, over: threading.Event) -> Iterator[float]:
    """The moments of the answers 200 on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection):
        while not over.is_set():
            connection.request("GET", "/notes/1")
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                yield time.perf_counter()


def open_stream(port: int) -> socket.socket:
    """A stream of which the first event has come."""
    stream = socket.create_connection(("127.0.0.1", port), sides.DEADLINE)
    stream.sendall(f"GET /waiting HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
    heard = b""
    while b"data: " not in heard:
        part = stream.recv(4096)
        if not part:
            raise RuntimeError("A stream was refused")
        heard += part
    return stream
