"""Answers that stream: the model behind the service, the proxy before it, the person who reads."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

import httpx2 as httpx

from support import ROOT, Answers
from support.service import DEADLINE, Service, free_port

ANSWERS: Answers = {"features": ["conversations"], "ai_provider": "anthropic"}

QUESTION = {"text": "Hi"}


def load_model() -> ModuleType:
    """Return the module with the server that the chassis's tests use for Anthropic's."""
    path = ROOT / "tests/chassis/conversations/claude.py"
    module = sys.modules["claude"] = ModuleType("claude")
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    return module


Claude = load_model().Claude


def gated(*texts: str) -> tuple[list[Any], list[threading.Event]]:
    """A plan that goes on after each text only when its gate is opened."""
    gates = [threading.Event() for _ in texts]
    return list(chain.from_iterable(zip(texts, gates, strict=True))), gates


def answering(project: Path, data: Path, url: str, **variables: str) -> Service:
    """The service, as production starts it, with the model's server at an address."""
    return Service(
        project, data, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="key", **variables
    ).wait_until_healthy()


@dataclass(frozen=True)
class Event:
    """What the service sends up to a blank line."""

    name: str = "message"
    data: str = ""
    id: str = ""
    comment: str = ""
    retry: str = ""

    @classmethod
    def parse(cls, block: bytes) -> "Event":
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
        return cls(
            fields.get("event", "message"),
            fields.get("data", ""),
            fields.get("id", ""),
            fields.get("", ""),
            fields.get("retry", ""),
        )

    @property
    def text(self) -> str:
        """The piece of the answer in it, if any."""
        if self.name != "message" or not self.data:
            return ""
        text: str = json.loads(self.data)["text"]
        return text


class Person:
    """Somebody with a thread of their own, and all that has arrived of the answer to "Hi".

    Args:
        url: The service, or a proxy before it.
        headers: Sent with every request.
    """

    def __init__(self, url: str, **headers: str) -> None:
        # a person who comes back has a new connection
        self.client = httpx.Client(
            base_url=url,
            headers=headers,
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=DEADLINE,
            trust_env=False,
            verify=False,
        )
        self.thread_id: int = self.client.post("/threads").json()["id"]
        self.text = ""
        self.last_id = ""
        self.end = ""
        """The name of the event that said that nothing more will come."""
        self.retry = 0.0
        """How many seconds a browser's EventSource waits before it comes back."""
        self.response_headers = httpx.Headers()
        self.heard_at = 0.0
        """When the latest event or comment came, on the monotonic clock."""
        self.arrivals: list[tuple[float, int]] = []
        """When a piece came, and how long the text has been since."""

    @property
    def path(self) -> str:
        return f"/threads/{self.thread_id}/chat"

    @contextmanager
    def reading(self, how: Literal["POST", "GET"] = "POST") -> Iterator[Iterator[Event]]:
        """Ask, or ask for the rest, and leave at the end of the block, wherever that is.

        What comes first is an id to come back with. An EventSource of a browser comes back
        with GET.
        """
        resuming = {"Last-Event-ID": self.last_id} if self.last_id else {}
        path, body = self.path, QUESTION
        if how == "GET":
            message_id, _, _ = self.last_id.partition("-")
            path, body = f"/threads/{self.thread_id}/messages/{message_id}/stream", None
        with self.client.stream(how, path, json=body, headers=resuming) as response:
            assert response.status_code == 200, response.read()
            self.response_headers = response.headers
            events = self._hear(response)
            first = next(events)
            assert first.id
            self.retry = int(first.retry) / 1000
            yield events

    def _hear(self, response: httpx.Response) -> Iterator[Event]:
        buffer = b""
        for chunk in response.iter_bytes():
            buffer += chunk
            *blocks, buffer = buffer.split(b"\n\n")
            for event in map(Event.parse, blocks):
                self.heard_at = time.monotonic()
                self.last_id = event.id or self.last_id
                if event.name != "message":
                    self.end = event.name
                elif event.text:
                    self.text += event.text
                    self.arrivals.append((self.heard_at, len(self.text)))
                yield event

    def read(self, count: int | None = None, how: Literal["POST", "GET"] = "POST") -> None:
        """Read so many pieces, or all that is left, and leave."""
        with self.reading(how) as events:
            for _ in islice(pieces(events), count):
                pass

    def ask_anew(self) -> int:
        """The status of another question's answer, which is read to its end."""
        return self.client.post(self.path, json=QUESTION).status_code

    def stored(self) -> tuple[str, str]:
        """Text and status of the answer, as the service tells it."""
        answer = self.client.get(f"/threads/{self.thread_id}").json()["messages"][-1]
        assert answer["role"] == "assistant"
        return answer["text"], answer["status"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


def pieces(events: Iterator[Event]) -> Iterator[str]:
    """The texts; the wait for each has an end, heartbeats or not."""
    deadline = time.monotonic() + DEADLINE
    for event in events:
        if text := event.text:
            deadline = time.monotonic() + DEADLINE
            yield text
        assert time.monotonic() < deadline, "nothing but heartbeats"


def stored_answers(data: Path) -> dict[int, tuple[str, str]]:
    """Text and status of the last answer in each thread, from the database itself."""
    query = "SELECT thread_id, text, status FROM messages WHERE role = 'assistant' ORDER BY id"
    with closing(sqlite3.connect(data / "app.db")) as connection:
        return {thread_id: (text, status) for thread_id, text, status in connection.execute(query)}


NGINX = """\
daemon off;
{user}
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_buffering on;
    proxy_read_timeout 20s;
    gzip on;
    gzip_proxied any;
    gzip_min_length 0;
    gzip_types text/event-stream application/json;
    server {{
        listen 127.0.0.1:{ports[0]};
        location / {{
            proxy_pass {url};
            proxy_http_version 1.0;
        }}
    }}
    server {{
        listen 127.0.0.1:{ports[1]};
        location / {{
            proxy_pass {url};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


class Nginx:
    """A proxy that buffers and compresses whatever it may, and speaks two versions of HTTP."""

    def __init__(self, directory: Path, url: str) -> None:
        ports = [free_port(), free_port()]
        self.urls = {
            version: f"http://127.0.0.1:{port}"
            for version, port in zip(["1.0", "1.1"], ports, strict=True)
        }
        user = "user root;" if os.geteuid() == 0 else ""
        config = directory / "nginx.conf"
        config.write_text(NGINX.format(directory=directory, url=url, ports=ports, user=user))
        self.process = subprocess.Popen([nginx(), "-p", directory, "-c", config])
        with httpx.Client() as client:
            wait_until(lambda: all(answers(client, url) for url in self.urls.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def nginx() -> str:
    """Debian's, installed if it is not there."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if not (found := shutil.which("nginx", path=path)):
        install = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "install", "-y", "-qq"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(
            [*install, "--no-install-recommends", "nginx"],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        found = shutil.which("nginx", path=path)
    assert found
    return found


def answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def workers(service: Service) -> list[int]:
    """The processes that the service's first one has started."""
    pid = service.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition: Callable[[], object], seconds: float = DEADLINE) -> float:
    """Wait, and tell how many seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds
        time.sleep(0.01)
    return time.monotonic() - start
