"""Event streams: what is sent, and when they end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.types import Message

from app.chassis.application import create_application, streams_stopped_by_signals
from app.chassis.settings import PROJECT_ROOT
from app.chassis.streaming import (
    EVENTS_IN_A_PASS,
    Events,
    EventStream,
    ServerSentEvent,
    _encode,
    open_streams,
)
from app.chassis.testing import new_database
from app.settings import Settings


class Client:
    """The other end of one stream: what it has received, and how it goes away."""

    def __init__(self, stream: EventStream) -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self.task = asyncio.create_task(stream({}, self.incoming.get, self.sent.put))

    async def start(self) -> dict[str, str]:
        message = await self.sent.get()
        assert message["type"] == "http.response.start"
        return {name.decode(): value.decode() for name, value in message["headers"]}

    async def next(self) -> str:
        message = await asyncio.wait_for(self.sent.get(), 5)
        body: bytes = message["body"]
        return body.decode()

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})


@pytest.fixture(autouse=True)
def forget_the_shutdown() -> None:
    open_streams.stopping = False


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 10))


class Source:
    """A generator that yields, waits without end, and remembers how it ended."""

    def __init__(self, *events: ServerSentEvent) -> None:
        self.events = events
        self.ended = ""

    async def __call__(self) -> Events:
        try:
            for event in self.events:
                yield event
            await asyncio.Event().wait()
        except BaseException as error:
            self.ended = type(error).__name__
            raise


@asynccontextmanager
async def connect(stream: EventStream) -> AsyncIterator[Client]:
    client = Client(stream)
    try:
        yield client
    finally:
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)


def test_headers_that_let_events_through() -> None:
    async def scenario() -> None:
        async with connect(EventStream(Source()())) as client:
            headers = await client.start()
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers

    run(scenario)


def test_events_arrive_one_by_one() -> None:
    async def scenario() -> None:
        source = Source(ServerSentEvent(data=1, id="1"), ServerSentEvent(data=2, id="2"))
        async with connect(EventStream(source())) as client:
            await client.start()
            assert await client.next() == "data: 1\nid: 1\n\n"
            assert await client.next() == "data: 2\nid: 2\n\n"
            assert client.sent.empty()

    run(scenario)


def test_the_stream_ends_with_its_events() -> None:
    async def two() -> Events:
        yield ServerSentEvent(data=1)
        yield ServerSentEvent(data=2)

    async def scenario() -> None:
        async with connect(EventStream(two())) as client:
            await client.start()
            assert [await client.next() for _ in range(3)] == ["data: 1\n\n", "data: 2\n\n", ""]
            await client.task

    run(scenario)


def test_silence_is_filled_with_heartbeats() -> None:
    async def scenario() -> None:
        async with connect(EventStream(Source()(), heartbeat=0.05)) as client:
            await client.start()
            assert [await client.next() for _ in range(3)] == [": heartbeat\n\n"] * 3

    run(scenario)


def test_the_generator_ends_when_the_client_goes() -> None:
    async def scenario() -> None:
        source = Source(ServerSentEvent(data=1))
        async with connect(EventStream(source())) as client:
            await client.start()
            await client.next()
            client.leave()
            await client.task
            assert source.ended == "CancelledError"
            assert client.sent.empty()

    run(scenario)


def test_a_stop_sends_a_last_event() -> None:
    async def scenario() -> None:
        source = Source(ServerSentEvent(data=1))
        async with connect(EventStream(source())) as client:
            await client.start()
            await client.next()
            open_streams.stop()
            assert await client.next() == "event: shutdown\ndata: {}\nretry: 1000\n\n"
            await client.task
            assert source.ended == "CancelledError"

    run(scenario)


def test_a_stream_that_starts_after_the_stop_ends_at_once() -> None:
    async def scenario() -> None:
        open_streams.stop()
        async with connect(EventStream(Source()())) as client:
            await client.start()
            assert (await client.next()).startswith("event: shutdown\n")
            await client.task

    run(scenario)


def test_a_failure_is_an_event_without_internals() -> None:
    async def broken() -> Events:
        yield ServerSentEvent(data=1)
        raise RuntimeError("password=hunter2")

    async def scenario() -> None:
        async with connect(EventStream(broken())) as client:
            await client.start()
            await client.next()
            last = await client.next()
            assert last.startswith("event: error\n")
            assert "hunter2" not in last
            await client.task

    run(scenario)


class Payload(BaseModel):
    text: str


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (ServerSentEvent(data=Payload(text="é\n")), 'data: {"text":"é\\n"}\n\n'),
        (ServerSentEvent(raw_data="a\nb"), "data: a\ndata: b\n\n"),
        (
            ServerSentEvent(event="x", data={}, id="7", retry=5),
            "event: x\ndata: {}\nid: 7\nretry: 5\n\n",
        ),
    ],
)
def test_the_wire_format(event: ServerSentEvent, wire: str) -> None:
    assert _encode(event).decode() == wire


def test_streams_that_never_wait_leave_turns_to_everyone_else() -> None:
    async def endless() -> Events:
        while True:
            yield ServerSentEvent(data="at hand")

    async def scenario() -> None:
        passes: list[int] = []

        async def count(message: Message) -> None:
            passes[-1] += message["type"] == "http.response.body"

        streams = []
        for _ in range(50):
            incoming: asyncio.Queue[Message] = asyncio.Queue()
            streams.append(asyncio.create_task(EventStream(endless())({}, incoming.get, count)))
        for _ in range(100):
            passes.append(0)
            await asyncio.sleep(0)
        # each of them sends its first event when it can
        assert sum(passes[10:]) > 50
        assert max(passes[10:]) <= EVENTS_IN_A_PASS
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    run(scenario)


def test_the_server_hears_of_signals_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes while SIGINT is being handled, as at a Ctrl-C under a reloader."""
    heard: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: heard.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    async def interrupted() -> None:
        with streams_stopped_by_signals():
            loop = asyncio.get_running_loop()
            scheduled: list[object] = []

            def schedule(call: object) -> None:
                scheduled.append(call)
                if len(scheduled) == 1:
                    signal.raise_signal(signal.SIGTERM)

            with monkeypatch.context() as patched:
                patched.setattr(loop, "call_soon_threadsafe", schedule)
                signal.raise_signal(signal.SIGINT)
            assert len(scheduled) == 2

    try:
        with asyncio.Runner() as runner:
            runner.run(interrupted())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGINT, signal.SIGTERM]


PLAIN = """
import asyncio, sys, uvicorn
from app.chassis import EventStream, ServerSentEvent, create_application
from app.settings import Settings

app = create_application(Settings.load())

async def waiting():
    yield ServerSentEvent(data="begun")
    await asyncio.Event().wait()

@app.get("/waiting", response_class=EventStream)
async def wait():
    return EventStream(waiting())

uvicorn.run(app, port=int(sys.argv[1]))
"""


def test_a_server_with_a_protocol_of_its_own_ends_streams_too(tmp_path: Path) -> None:
    """As `uvicorn app.main:create_app --factory`, which a development environment may start."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "DATABASE_URL": new_database(tmp_path)}
    command = [sys.executable, "-c", PLAIN, str(port)]
    server = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment)
    try:
        with opened(f"http://127.0.0.1:{port}/waiting") as response:
            lines = response.iter_lines()
            assert next(lines) == 'data: "begun"'
            server.terminate()
            server.wait(5)
            assert "event: shutdown" in lines
    finally:
        server.kill()
        server.wait()


@contextmanager
def opened(url: str) -> Iterator[httpx.Response]:
    """Ask as soon as the server listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with httpx.stream("GET", url, timeout=20) as response:
                yield response
                return
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_second_server_in_a_process_has_streams_again(settings: Settings) -> None:
    open_streams.stopping = True
    with TestClient(create_application(settings)):
        assert not open_streams.stopping
