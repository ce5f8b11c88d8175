# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Streams that send server-sent events one by one, stay open, resume, and end when they should.

The wire format is https://html.spec.whatwg.org/multipage/server-sent-events.html. Railway closes a
response after 5 minutes without data and after 15 minutes in all
(docs.railway.com/networking/public-networking/specs-and-limits). Browsers then reconnect with
Last-Event-ID.
"""

import asyncio
import logging
import signal
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
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
        try:
            async for event in self._events:
                await self._send(send, _encode(event))
                await _next_turn()
        finally:
            await self._events.aclose()

    async def _send(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._last_sent = asyncio.get_running_loop().time()

    async def _keep_open(
        self, pump: asyncio.Task[None], departure: asyncio.Task[None], send: Send
    ) -> None:
        """Return when the events or the client are gone, and send comments until then."""
        clock = asyncio.get_running_loop().time
        self._last_sent = clock()
        while True:
            silence_left = self._last_sent + self._heartbeat - clock()
            if silence_left <= 0:
                await self._send(send, format_sse_event(comment="heartbeat"))
                continue
            done, _ = await asyncio.wait(
                (pump, departure), timeout=silence_left, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return


class OpenStreams:
    """Streams of this process, so that they end when it is told to stop.

    Servers wait for open responses before they shut an application down. Otherwise nothing in the
    application would hear of the stop in time.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.pumps: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        self.stopping = True
        for pump in self.pumps:
            pump.cancel()

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """End the streams on SIGTERM and SIGINT, which the server hears too."""
        self.stopping = False
        servers: dict[int, Callable[[int, FrameType | None], object]] = {}
        # A test client runs the application in a thread, where no signal arrives
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            servers = {number: handler for number, handler in found.items() if callable(handler)}
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            # The server hears of the signal first. Ctrl-C reaches every process of a terminal,
            # and the first of them then sends SIGTERM. A server that heard of SIGTERM first
            # would end at once, like on a second Ctrl-C, without the service's own end.
            try:
                servers[number](number, frame)
            finally:
                loop.call_soon_threadsafe(self.stop)

        for number in servers:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in servers.items():
                signal.signal(number, handler)


open_streams = OpenStreams()

_turns: deque[asyncio.Future[None]] = deque()


async def _next_turn() -> None:
    """Wait for a later pass of the event loop, so that busy streams keep nobody waiting.

    A generator that has its next event at hand never waits. A send that finds room in a buffer does
    not wait either. An event loop accepts one connection in a pass, and a pass in which hundreds of
    streams send takes long.
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
    # A client whose request body is refused while the stream is open is treated as gone
    with suppress(HTTPException):
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
