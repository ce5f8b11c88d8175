# Belongs to the template: your own tests go into tests/, beside this directory.
"""The handler that writes the lines of several requests at once."""

import asyncio
import io
import json
import logging

import pytest

from app.chassis.logs import TOGETHER, JsonFormatter, LineHandler, RequestRecord


class Pipe(io.StringIO):
    """Notes what is written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def handler(pipe: Pipe) -> LineHandler:
    made = LineHandler(pipe)
    made.setFormatter(logging.Formatter("%(message)s"))
    return made


def request(number: int, path: str = "/") -> RequestRecord:
    return RequestRecord("app.request", "GET", f"{path}{number}", 200, 0.1, "")


def other(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text})


def messages(pipe: Pipe) -> list[str]:
    return [line.removesuffix(" 200 0.1 ms") for line in pipe.getvalue().splitlines()]


def test_requests_that_end_together_are_written_together(handler: LineHandler, pipe: Pipe) -> None:
    async def scenario() -> None:
        handler.handle(request(1))
        handler.handle(request(2))
        assert not pipe.pieces
        await asyncio.sleep(0)
        assert len(pipe.pieces) == 1
        handler.handle(request(3))
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert messages(pipe) == ["GET /1", "GET /2", "GET /3"]


def test_everything_else_is_written_at_once_and_in_order(handler: LineHandler, pipe: Pipe) -> None:
    async def scenario() -> None:
        handler.handle(request(1))
        handler.handle(other("warning"))
        assert messages(pipe) == ["GET /1", "warning"]

    asyncio.run(scenario())


def test_a_piece_is_no_longer_than_a_pipe_keeps_whole(handler: LineHandler, pipe: Pipe) -> None:
    handler.setFormatter(JsonFormatter())

    async def scenario() -> None:
        for number in range(100):
            handler.handle(request(number, "/\xe9"))

    asyncio.run(scenario())
    assert len(pipe.getvalue().splitlines()) == 100
    assert max(len(piece.encode()) for piece in pipe.pieces) <= 4096
    assert len(pipe.pieces) < 100 / 4
    assert TOGETHER <= 4096 / 2


def test_without_an_event_loop_nothing_waits(handler: LineHandler, pipe: Pipe) -> None:
    handler.handle(request(1))
    assert messages(pipe) == ["GET /1"]


def test_what_a_loop_did_not_get_to_is_written_at_the_end(handler: LineHandler, pipe: Pipe) -> None:
    loop = asyncio.new_event_loop()
    loop.call_soon(handler.handle, request(1))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    handler.flush()
    asyncio.run(handle_in_loop(handler))
    assert messages(pipe) == ["GET /1", "GET /2"]


async def handle_in_loop(handler: LineHandler) -> None:
    handler.handle(request(2))


def test_a_requests_line_is_what_an_encoder_would_write() -> None:
    record = RequestRecord("app.request", "GET", '/"quoted"\\\xe9\x7f', 404, 12.34, "::1")
    told = JsonFormatter().format(record)
    assert told == json.dumps(json.loads(told), ensure_ascii=False)
    entry = json.loads(told)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "info",
        "message": 'GET /"quoted"\\\xe9\x7f 404 12.3 ms',
        "logger": "app.request",
        "request_id": "",
        "method": "GET",
        "path": '/"quoted"\\\xe9\x7f',
        "status": 404,
        "duration_ms": 12.34,
        "client": "::1",
    }
