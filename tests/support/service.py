"""A rendered project's service as a real process, started the ways that platforms start it."""

import json
import os
import random
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path

import httpx2 as httpx

DEADLINE = 60.0
START = "python -m app"

FORMS = {
    "exec": shlex.split(START),
    "bash -c": ["bash", "-c", START],
    "bash -l -c": ["bash", "-l", "-c", START],
}


PORTS = range(10_000, 32_000)
"""Those that the system gives to no outgoing connection, of which a load makes many."""

HELD = 100
"""Ports that are held at a time, because a terminal's descriptors have to be below 1024."""

held: dict[int, socket.socket] = {}


def free_port() -> int:
    """A port that nobody has, and nobody else who asks here gets while this process runs.

    Whoever listens on it may need seconds to start.
    """
    while True:
        port = random.choice(PORTS)
        holder = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            try:
                # an abstract name, which goes with the process
                holder.bind(f"\0trackbed-port-{port}")
                probe.bind(("", port))
            except OSError:
                holder.close()
                continue
        held[port] = holder
        if len(held) > HELD:
            held.pop(next(iter(held))).close()
        return port


class Service:
    """The start command in a project, with nothing of this machine's environment but PATH."""

    def __init__(
        self,
        project: Path,
        data: Path,
        command: list[str] = FORMS["exec"],
        *,
        port: int | None = None,
        output: int | None = None,
        **variables: str,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=DEADLINE)
        data.mkdir(exist_ok=True)
        self.log = data / f"service-{self.port}.log"
        path = f"{project / '.venv' / 'bin'}:{os.environ['PATH']}"
        environment = {
            "PATH": path,
            # a login shell sets PATH anew; its profile is what an image would have
            "HOME": str(data),
            "DATABASE_URL": f"sqlite:///{data}/app.db",
            # as in production
            "LOCK_TIMEOUT": "120",
            **({} if port == 8000 else {"PORT": str(self.port)}),
            **variables,
        }
        (data / ".bash_profile").write_text(f"export PATH={shlex.quote(path)}\n")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=project,
                env=environment,
                stdout=log if output is None else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def entries(self) -> list[dict[str, object]]:
        """The log's lines, where it is written as JSON."""
        return [json.loads(line) for line in self.output().splitlines()]

    def wait_until_healthy(self) -> "Service":
        deadline = time.monotonic() + DEADLINE
        while True:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            try:
                if self.client.get("/health").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.05)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the log has a text, because a line may come after the answer it is about."""
        deadline = time.monotonic() + DEADLINE
        while self.output().count(text) < times:
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def notes(self) -> list[str]:
        """The text of every note, as the service tells it."""
        texts: list[str] = []
        after = 0
        while page := self.client.get("/notes", params={"after": after}).json():
            texts += [note["text"] for note in page]
            after = page[-1]["id"]
        return texts

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        return self.process.wait(DEADLINE)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Writers:
    """Clients that add notes all the time, and know which ones were acknowledged.

    A client that gets no answer turns to the next address, with the next note.
    """

    def __init__(self, *urls: str, clients: int = 4, pause: float = 0.01) -> None:
        self.urls = urls
        self.pause = pause
        self.acknowledged: list[tuple[float, str]] = []
        """When, on the monotonic clock, and the note's text."""
        self.failures: Counter[str] = Counter()
        """How often there was another answer than 201, or none, by its name."""
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(f"client {number}",), daemon=True)
            for number in range(clients)
        ]

    def _write(self, name: str) -> None:
        target = 0
        with httpx.Client(timeout=DEADLINE) as client:
            for number in count():
                if self._stop.is_set():
                    return
                text = f"{name}: {number}"
                url = self.urls[target % len(self.urls)]
                try:
                    status = client.post(f"{url}/notes", json={"text": text}).status_code
                except httpx.TransportError as error:
                    self.failures[type(error).__name__] += 1
                    target += 1
                    time.sleep(5 * self.pause)
                else:
                    if status == 201:
                        self.acknowledged.append((time.monotonic(), text))
                    else:
                        self.failures[str(status)] += 1
                time.sleep(self.pause)

    def texts(self) -> list[str]:
        return [text for _, text in self.acknowledged]

    def longest_silence(self) -> float:
        """Seconds between two acknowledgements."""
        times = sorted(moment for moment, _ in self.acknowledged)
        return max(after - before for before, after in pairwise(times))

    def wait_for_more(self, notes: int = 1) -> None:
        wanted = len(self.acknowledged) + notes
        deadline = time.monotonic() + DEADLINE
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, self.failures
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


INCLUDE = "    app.include_router(notes.router)\n"


@contextmanager
def router_added(project: Path, name: str, source: str) -> Iterator[Path]:
    """The project with one more module of routes, as its owner would add it."""
    main = project / "app" / "main.py"
    before = main.read_text(encoding="utf-8")
    assert INCLUDE in before
    module = project / "app" / "api" / f"{name}.py"
    module.write_text(source, encoding="utf-8")
    after = before.replace("import notes", f"import {name}, notes")
    main.write_text(
        after.replace(INCLUDE, f"{INCLUDE}    app.include_router({name}.router)\n"),
        encoding="utf-8",
    )
    try:
        yield module
    finally:
        main.write_text(before, encoding="utf-8")
        module.unlink()
