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
from collections.abc import AsyncGenerator, Iterator
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

logger = logging.getLogger(__name__)

HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment keeps the connection open."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that a generator has for its clean-up when its stream ends early."""

EVENTS_IN_A_PASS: Final = 8
"""Number of events that all streams together send in one pass of the event loop."""

RECONNECT: Final = 1000
"""Milliseconds that a browser waits before it reconnects after the service has stopped."""

T = TypeVar("T")

LastEventId = Annotated[T, Header(alias="Last-Event-ID")]
"""Id of the last event that a reconnecting client has seen, used as `LastEventId[int] = 0`."""

Events = AsyncGenerator[ServerSentEvent, None]


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
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        pump = asyncio.create_task(self._pump(send))
        departure = asyncio.create_task(wait_for_disconnect(receive))
        open_streams.add(pump)
        try:
            await self._keep_open(pump, departure, send)
            if departure.done() or open_streams.stopping:
                pump.cancel()
            await asyncio.wait((pump,), timeout=CLOSE_TIMEOUT)
        finally:
            open_streams.discard(pump)
            connected = not departure.done()
            departure.cancel()
            pump.cancel()
        if connected:
            await send({"type": "http.response.body", "body": last_event(pump)})

    async def _pump(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": encode(event), "more_body": True})
                self._last_sent = clock()
                await turns.next()
        finally:
            await self._events.aclose()

    async def _keep_open(
        self, pump: asyncio.Task[None], departure: asyncio.Task[None], send: Send
    ) -> None:
        """Return when the events or the client are gone, and send comments until then."""
        clock = asyncio.get_running_loop().time
        self._last_sent = clock()
        comment = format_sse_event(comment="heartbeat")
        while True:
            silence_ends = self._last_sent + self._heartbeat
            done, _ = await asyncio.wait(
                (pump, departure),
                timeout=silence_ends - clock(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if done:
                return
            if clock() >= self._last_sent + self._heartbeat:
                await send({"type": "http.response.body", "body": comment, "more_body": True})
                self._last_sent = clock()


class Turns:
    """Order in which streams send, so that many of them do not keep everyone else waiting.

    A generator that has its next event at hand never waits. A send that finds room in a buffer does
    not wait either. So each stream gives way after every event. An event loop accepts one
    connection in a pass, and a pass in which hundreds of streams send takes long.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def next(self) -> None:
        """Wait for a later pass of the event loop. EVENTS_IN_A_PASS streams go on in each."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._waiting.clear()
        turn = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._give)
        self._waiting.append(turn)
        await turn

    def _give(self) -> None:
        for _ in range(min(EVENTS_IN_A_PASS, len(self._waiting))):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
        if self._waiting and self._loop:
            self._loop.call_soon(self._give)


turns = Turns()


class OpenStreams:
    """Streams of this process, so that they end when it is told to stop.

    Servers wait for open responses before they shut an application down. Otherwise nothing in the
    application would hear of the stop in time.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._pumps: set[asyncio.Task[None]] = set()

    def add(self, pump: asyncio.Task[None]) -> None:
        self._pumps.add(pump)
        if self.stopping:
            pump.cancel()

    def discard(self, pump: asyncio.Task[None]) -> None:
        self._pumps.discard(pump)

    def stop(self) -> None:
        self.stopping = True
        for pump in self._pumps:
            pump.cancel()

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """End the streams on SIGTERM and SIGINT, which the server hears too."""
        self.stopping = False
        if threading.current_thread() is not threading.main_thread():
            yield  # A test client has no server, and no signal arrives here
            return
        loop = asyncio.get_running_loop()
        servers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def handle(number: int, frame: FrameType | None) -> None:
            # The server hears of the signal first. Ctrl-C reaches every process of a terminal,
            # and the first of them then sends SIGTERM. A server that heard of SIGTERM first
            # would end at once, like on a second Ctrl-C, without the service's own end.
            handler = servers[signal.Signals(number)]
            try:
                if callable(handler):
                    handler(number, frame)
            finally:
                loop.call_soon_threadsafe(self.stop)

        for number, handler in servers.items():
            if callable(handler):
                signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in servers.items():
                if callable(handler):
                    signal.signal(number, handler)


open_streams = OpenStreams()


async def wait_for_disconnect(receive: Receive) -> None:
    # A client whose request body is refused while the stream is open is treated as gone
    with suppress(HTTPException):
        while (await receive())["type"] != "http.disconnect":
            pass


def last_event(pump: asyncio.Task[None]) -> bytes:
    """Return the last event for the client, or nothing if the generator was simply exhausted."""
    if pump.done() and not pump.cancelled() and (error := pump.exception()):
        logger.error("An event stream failed", exc_info=error)
        return encode(ServerSentEvent(event="error", data={"detail": "Internal server error"}))
    if open_streams.stopping:
        return encode(ServerSentEvent(event="shutdown", data={}, retry=RECONNECT))
    return b""


def encode(event: ServerSentEvent) -> bytes:
    """Return the event as it goes over the wire, with `data` as JSON."""
    text = event.raw_data
    if text is None and event.data is not None:
        text = to_json(event.data).decode()
    return format_sse_event(
        data_str=text, event=event.event, id=event.id, retry=event.retry, comment=event.comment
    )
