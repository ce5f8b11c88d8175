"""Clients that take nothing of their answer, and slow ones, which are none of them."""

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from app.chassis import bounds
from app.chassis.bounds import BoundedProtocol
from app.chassis.streaming import open_streams

ANSWER = bytes(16 * 1024**2)

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def answer(_: Scope, __: Receive, send: Send) -> None:
    length = str(len(ANSWER)).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    await send({"type": "http.response.body", "body": ANSWER})


class Server:
    """One that answers with more than any buffer holds."""

    def __init__(self) -> None:
        self.state = ServerState()
        self.lost = asyncio.Event()
        config = Config(answer, log_config=None, lifespan="off")
        server = self

        class Noting(BoundedProtocol):
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                server.lost.set()

        self.make = lambda: Noting(config, self.state, {})

    async def ask(self, buffer: int = 4096) -> socket.socket:
        loop = asyncio.get_running_loop()
        here = await loop.create_server(self.make, "127.0.0.1", 0)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.setblocking(False)
        await loop.sock_connect(client, here.sockets[0].getsockname())
        await loop.sock_sendall(client, REQUEST)
        await loop.sock_recv(client, 1)
        here.close()
        return client


@pytest.fixture(autouse=True)
def forget_the_stop() -> Iterator[None]:
    yield
    open_streams.stopping = False


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_who_takes_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "UNREAD", 0.1)

    async def scenario() -> None:
        server = Server()
        with await server.ask():
            await server.lost.wait()

    run(scenario)


def test_a_stop_does_not_wait_for_who_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "UNREAD_AT_A_STOP", 0.1)

    async def scenario() -> None:
        server = Server()
        with await server.ask():
            (connection,) = server.state.connections
            connection.shutdown()
            await server.lost.wait()

    run(scenario)


def test_a_stop_ends_the_streams() -> None:
    async def scenario() -> None:
        server = Server()
        with await server.ask():
            (connection,) = server.state.connections
            assert not open_streams.stopping
            connection.shutdown()
            assert open_streams.stopping
            connection.transport.abort()
            await server.lost.wait()

    run(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what has arrived")
def test_a_slow_client_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "UNREAD", 0.2)
    monkeypatch.setattr(bounds, "UNREAD_AT_A_STOP", 0.2)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        server = Server()
        with await server.ask(64 * 1024) as client:
            for connection in server.state.connections:
                connection.shutdown()
            received = 0
            with suppress(ConnectionResetError):
                while part := await loop.sock_recv(client, 256 * 1024):
                    received += len(part)
                    await asyncio.sleep(0.01)
            assert received >= len(ANSWER)

    run(scenario)
