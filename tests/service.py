"""A rendered project's service as a real process, started the ways that platforms start it."""

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2 as httpx

DEADLINE = 60.0
START = "python -m app"

FORMS = {
    "exec": shlex.split(START),
    "bash -c": ["bash", "-c", START],
    "bash -l -c": ["bash", "-l", "-c", START],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    """The start command in a project, with nothing of this machine's environment but PATH."""

    def __init__(
        self,
        project: Path,
        data: Path,
        command: list[str] = FORMS["exec"],
        *,
        port: int | None = None,
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
            **({} if port == 8000 else {"PORT": str(self.port)}),
            **variables,
        }
        (data / ".bash_profile").write_text(f"export PATH={shlex.quote(path)}\n")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=project,
                env=environment,
                stdout=log,
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

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while text not in self.output():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

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
