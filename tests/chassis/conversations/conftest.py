"""A service with conversations that is really listening, and whose model the test chooses."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.chassis.conversations.owner import owner
from app.chassis.conversations.turns import Turn
from app.chassis.streaming import open_streams
from app.main import create_app
from app.settings import Settings

from ..databases import make_database


class Model:
    """A provider that says what the test lets it say, and remembers what became of it."""

    def __init__(self) -> None:
        self.asked: list[Sequence[Turn]] = []
        self.pieces: list[str | BaseException | threading.Event] = ["Hello", " there"]
        self.stopped = threading.Event()
        self.stopped_at = 0.0
        self.closed = False

    async def stream(self, turns: Sequence[Turn]) -> AsyncGenerator[str, None]:
        self.asked.append(turns)
        try:
            for piece in self.pieces:
                if isinstance(piece, str):
                    yield piece
                elif isinstance(piece, BaseException):
                    raise piece
                else:
                    while not piece.is_set():  # noqa: ASYNC110, it is set in another thread
                        await asyncio.sleep(0.005)
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped_at = time.monotonic()
            self.stopped.set()
            raise

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Event:
    """One event of a stream, as a client sees it."""

    name: str
    data: dict[str, Any]
    id: str


@dataclass
class Stream:
    """A stream that is read an event at a time, and its last id."""

    response: httpx.Response
    last_id: str = ""
    lines: Iterator[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = self.response.iter_lines()

    def next(self) -> Event | None:
        """The next event, or None at the end; ids without an event are remembered."""
        name, data = "message", ""
        for line in self.lines:
            key, _, value = line.partition(": ")
            match key:
                case "id":
                    self.last_id = value
                case "event":
                    name = value
                case "data":
                    data = value
                case "" if data:
                    return Event(name, json.loads(data), self.last_id)
        return None

    def rest(self) -> list[Event]:
        return list(iter(self.next, None))


class Service:
    """The application on a port of its own."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> "Service":
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.005)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
        return self

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.client.close()

    def thread_id(self, **body: str) -> int:
        return int(self.client.post("/threads", json=body).json()["id"])

    def messages(self, thread_id: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get(f"/threads/{thread_id}").json()["messages"]
        return found

    @contextmanager
    def chat(self, thread_id: int, text: str = "Hi", last_id: str = "") -> Iterator[Stream]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self.client.stream(
            "POST", f"/threads/{thread_id}/chat", json={"text": text}, headers=headers
        ) as response:
            assert response.status_code == 200, response.read()
            with closing(response):
                yield Stream(response)

    def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def forget_the_shutdown() -> None:
    open_streams.stopping = False


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def app(settings: Settings, model: Model) -> FastAPI:
    """The application, as person 1 sees it, who needs no sign-in."""
    make_database(settings)
    app = create_app(settings)
    app.dependency_overrides[owner] = lambda: 1
    app.state.replies.provider = model
    return app


@pytest.fixture
def service(app: FastAPI) -> Iterator[Service]:
    with Service(app) as service:
        yield service
