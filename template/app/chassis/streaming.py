# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Streams that send server-sent events one by one, stay open, resume, and end when they should.

The wire format is https://html.spec.whatwg.org/multipage/server-sent-events.html. Railway closes a
response after 5 minutes without data and after 15 minutes in all, and browsers reconnect with
Last-Event-ID (docs.railway.com/networking/public-networking/specs-and-limits).
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated, Final, TypeVar

from fastapi import Header
from fastapi.sse import ServerSentEvent, format_sse_event
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "Events", "LastEventId", "ServerSentEvent"]

T = TypeVar("T")

LastEventId = Annotated[T, Header(alias="Last-Event-ID")]
"""Id of the last event that a reconnecting client has seen, used as `LastEventId[int] = 0`."""

Events = AsyncGenerator[ServerSentEvent, None]

HEARTBEAT: Final = 15.0  # Seconds of silence after which a comment keeps the connection open
CLOSE_TIMEOUT: Final = 5.0  # Seconds for a generator's clean-up when its stream ends early
EVENTS_IN_A_PASS: Final = 8  # Events that all streams send in one pass of the event loop
RECONNECT: Final = 1000  # Milliseconds after which a browser reconnects to a stopped service

logger = logging.getLogger(__name__)


class EventStream(Response):
    """Response that sends what an asynchronous generator yields.

    When the client goes or the service stops, the generator is cancelled where it waits, and then
    closed. The client of a stopped service is sent a last `shutdown` event. If the generator
    raises, the last event is `error`.

    Args:
        events: The generator. It resumes after the client's Last-Event-ID.
        heartbeat: Seconds of silence after which a comment is sent.
        status_code: Status of the answer, which FastAPI's `response_class=EventStream` looks for.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: Events, *, heartbeat: float = HEARTBEAT, status_code: int = 200
    ) -> None:
        super().__init__(status_code=status_code)
        del self.headers["content-length"]
        self.headers["Cache-Control"] = "no-cache, no-transform"
        # Without this, nginx and its like collect small events in a buffer
        self.headers["X-Accel-Buffering"] = "no"
        self._events = events
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        pump = asyncio.create_task(self._pump(send))
        departure = asyncio.create_task(_wait_for_disconnect(receive))
        open_streams.pumps.add(pump)
        try:
            if not open_streams.stopping:
                await self._keep_open(pump, departure, send)
            if departure.done() or open_streams.stopping:
                pump.cancel()
            await asyncio.wait((pump,), timeout=CLOSE_TIMEOUT)
        finally:
            open_streams.pumps.discard(pump)
            connected = not departure.done()
            departure.cancel()
            pump.cancel()
        if connected:
            await send({"type": "http.response.body", "body": _last_event(pump)})

    async def _pump(self, send: Send) -> None:
        async with aclosing(self._events):
            async for event in self._events:
                await self._send(send, _encode(event))
                await _next_turn()

    async def _send(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._last_sent = asyncio.get_running_loop().time()

    async def _keep_open(
        self, pump: asyncio.Task[None], departure: asyncio.Task[None], send: Send
    ) -> None:
        """Return when the events or the client are gone, and send comments until then."""
        clock = asyncio.get_running_loop().time
        self._last_sent = clock()
        done: set[asyncio.Task[None]] = set()
        while not done:
            if clock() >= self._last_sent + self._heartbeat:
                await self._send(send, format_sse_event(comment="heartbeat"))
            silence = self._last_sent + self._heartbeat - clock()
            done, _ = await asyncio.wait(
                (pump, departure), timeout=silence, return_when=asyncio.FIRST_COMPLETED
            )


class _OpenStreams:
    """Streams of this process. They end before the server waits for open responses."""

    def __init__(self) -> None:
        self.stopping = False
        self.pumps: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """End every stream. Only the first call does, so that none is disturbed in its clean-up."""
        if not self.stopping:
            self.stopping = True
            for pump in self.pumps:
                pump.cancel()


open_streams = _OpenStreams()

_turns: deque[asyncio.Future[None]] = deque()


async def _next_turn() -> None:
    """Wait for a later pass of the event loop, so that busy streams keep nobody waiting.

    A generator with its next event at hand never waits, and neither does a send into a buffer with
    room. A pass in which hundreds of streams send takes long, and accepts one connection.
    """
    loop = asyncio.get_running_loop()
    if _turns and _turns[0].get_loop() is not loop:
        _turns.clear()  # Their event loop has ended
    if not _turns:
        loop.call_soon(_give_turns)
    turn = loop.create_future()
    _turns.append(turn)
    await turn


def _give_turns() -> None:
    for _ in range(min(EVENTS_IN_A_PASS, len(_turns))):
        turn = _turns.popleft()
        if not turn.done():
            turn.set_result(None)
    if _turns:
        asyncio.get_running_loop().call_soon(_give_turns)


async def _wait_for_disconnect(receive: Receive) -> None:
    with suppress(HTTPException):  # A client whose request body is refused is treated as gone
        while (await receive())["type"] != "http.disconnect":
            pass


def _last_event(pump: asyncio.Task[None]) -> bytes:
    """Return the last event for the client, or nothing if the generator was simply exhausted."""
    if pump.done() and not pump.cancelled() and (error := pump.exception()):
        logger.error("An event stream failed", exc_info=error)
        return _encode(ServerSentEvent(event="error", data={"detail": "Internal server error"}))
    if open_streams.stopping:
        return _encode(ServerSentEvent(event="shutdown", data={}, retry=RECONNECT))
    return b""


def _encode(event: ServerSentEvent) -> bytes:
    """Return the event as it goes over the wire, with `data` as JSON."""
    text = event.raw_data
    if text is None and event.data is not None:
        text = to_json(event.data).decode()
    return format_sse_event(
        data_str=text, event=event.event, id=event.id, retry=event.retry, comment=event.comment
    )
