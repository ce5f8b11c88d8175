# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Limits on the bytes, fields and seconds of a connection before there is a request.

uvicorn has no such limits, and its parser keeps a header of any length until it ends. So bytes are
counted as they come in, before the parser can tell what they are.
"""

import asyncio
import logging
import socket
import struct
from functools import cache
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.chassis.http import (
    CONTENT_POLICY,
    MAPPED,
    SECURITY_HEADERS,
    choose_request_id,
    completed,
    log_request,
    problem,
)
from app.chassis.logs import request_id
from app.chassis.streaming import open_streams

HEAD_BYTES: Final = 32 * 1024  # Railway's edge lets no more through
HEAD_FIELDS: Final = 100
HEAD_SECONDS: Final = 10.0  # From the start of the connection, or of the headers if it was used
PIPELINED: Final = 10  # Requests that wait in a connection while another one is answered
LINGER: Final = 2.0  # Seconds for a refused client to go on sending, so that it reads the answer
BYTES_ACKED: Final = 120  # Offset in tcp_info (linux/tcp.h) of what the client has confirmed
UNREAD: Final = 60  # Seconds after which a client that reads nothing of its answer is disconnected
UNREAD_AT_A_STOP: Final = 2  # Seconds for such a client while the service stops
SCHEMES: Final = frozenset({b"http", b"https"})

REFUSALS: Final = {
    400: "This is no valid HTTP request",
    408: f"The headers of the request were not complete after {HEAD_SECONDS:.0f} s",
    431: f"The headers of the request are more than {HEAD_BYTES} bytes or {HEAD_FIELDS} fields",
}


UVICORNS: Final = (
    '%s - "WebSocket',
    "connection open",
    "connection closed",
    "connection rejected",
    "ASGI callable returned without completing handshake",
)
"""Beginnings of the lines that uvicorn logs about WebSockets.

There are two or three lines for each WebSocket, some with the query. The access log has one line
already, and ErrorBoundary logs a WebSocket without an answer.
"""

logger = logging.getLogger(__name__)

logging.getLogger("uvicorn.error").addFilter(lambda record: not record.msg.startswith(UVICORNS))


@cache
def warn_of_sockets() -> None:
    """Warn once in the life of a worker that the library for WebSockets is missing."""
    logger.warning("A client has asked for a WebSocket, for which this takes `uv add websockets`")


class TooMuch(Exception):  # noqa: N818, it never leaves this module
    """Error that ends the parser's work on a connection."""


class BoundedProtocol(HttpToolsProtocol):
    """Protocol of uvicorn for one connection, with limits on what comes in and on what waits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.patience: float = UNREAD
        self.arrived = 0
        self.next_look: asyncio.TimerHandle | None = None
        self.in_head = self.in_body = False
        self.unused = 0
        """Number of bytes that have come in since the parser last completed something."""
        self.split = False
        """True if the headers may have begun in bytes that `unused` does not count."""
        self.deaf = False
        """True if the connection is about to end, and incoming bytes are ignored."""
        self.deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.call_later(HEAD_SECONDS, self.head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.look_no_more()
        self.forget_deadline()

    def pause_writing(self) -> None:
        """Watch whether a client that is slower than its answer takes any of it."""
        super().pause_writing()
        if self.next_look is None:
            self.watch()

    def shutdown(self) -> None:
        """End the streams and give the client less time, because the service stops."""
        super().shutdown()
        open_streams.stop()
        self.patience = UNREAD_AT_A_STOP
        self.watch()

    def watch(self) -> None:
        self.look_no_more()
        self.arrived = self.bytes_arrived()
        self.next_look = self.loop.call_later(self.patience, self.look)

    def look(self) -> None:
        self.next_look = None
        if self.transport.get_write_buffer_size() and self.bytes_arrived() == self.arrived:
            self.transport.abort()
        elif self.flow.write_paused or self.patience == UNREAD_AT_A_STOP:
            self.watch()

    def look_no_more(self) -> None:
        if self.next_look:
            self.next_look.cancel()
            self.next_look = None

    def bytes_arrived(self) -> int:
        """Return the number of bytes that the client has confirmed.

        Without Linux, return minus the number of bytes that wait to be sent.
        """
        connection = self.transport.get_extra_info("socket")
        try:
            information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            arrived: int = struct.unpack_from("Q", information, BYTES_ACKED)[0]
        except (AttributeError, OSError, struct.error):
            return -self.transport.get_write_buffer_size()
        return arrived

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        self._unset_keepalive_if_required()
        self.unused += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.in_body = False
                if self.is_handshake():
                    self.handle_websocket_upgrade()
                else:
                    self.refuse(400)
            else:
                if self.ws_protocol_class is None and self._get_upgrade() == b"websocket":
                    warn_of_sockets()
                # Nobody can tell where the next request would begin
                self.deaf = True
                self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            self.refuse(431 if isinstance(error.__context__, TooMuch) else 400)
        else:
            if self.unused > HEAD_BYTES or len(self.headers or ()) > HEAD_FIELDS:
                self.refuse(431)
            elif self.in_head or not (self.in_body or self.is_busy()):
                self.split = True
                if self.deadline is None:
                    self.deadline = self.loop.call_later(HEAD_SECONDS, self.head_is_late)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            raise TooMuch
        super().on_message_begin()
        self.in_head = True

    def on_headers_complete(self) -> None:
        if len(self.headers) > HEAD_FIELDS:
            raise TooMuch
        # The headers are only added up where they can be too long
        if (self.split or self.unused > HEAD_BYTES) and self.head_bytes() > HEAD_BYTES:
            raise TooMuch
        if not self.url.startswith((b"/", b"*")) and not self.is_for_host():
            raise ValueError
        super().on_headers_complete()
        self.forget_deadline()
        self.in_head = self.split = False
        self.in_body = True
        self.unused = 0
        if not self.parser.should_upgrade():
            # Trailer fields must not pass for headers, because nobody has checked them
            self.headers = []

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self.unused = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.in_body = False
        self.unused = 0

    def is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def is_for_host(self) -> bool:
        """Return whether a complete address, as proxies get it, names the host of the Host header.

        https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2
        """
        scheme, _, rest = self.url.partition(b"://")
        hosts = [value.lower() for name, value in self.headers if name == b"host"]
        return scheme.lower() in SCHEMES and [rest.partition(b"/")[0].lower()] == hosts

    def is_handshake(self) -> bool:
        """Return whether this is a valid handshake of a WebSocket.

        The library leaves other handshakes without an answer or end, or answers them itself.
        https://www.rfc-editor.org/rfc/rfc6455#section-4.2.1
        """
        found = dict(self.headers)
        return (
            self.scope["method"] == "GET"
            and bool(found.get(b"sec-websocket-key"))
            and found.get(b"sec-websocket-version") == b"13"
            and found.get(b"content-length", b"0") == b"0"
            and b"transfer-encoding" not in found
        )

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to the library, and end it if the library cannot read the request."""
        super().handle_websocket_upgrade()
        library = getattr(self.transport.get_protocol(), "conn", None)
        # The library only answers what it could read, and cannot read a field of 8 KB, for example
        if getattr(library, "handshake_exc", None) and not self.transport.is_closing():
            self.write_refusal(400)
            self.transport.close()

    def forget_deadline(self) -> None:
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None

    def head_is_late(self) -> None:
        self.deadline = None
        if self.in_head:
            self.refuse(408)
        else:
            self.transport.close()

    def refuse(self, status: int) -> None:
        """Answer with an error and end the connection, after the answers that are due."""
        if self.deaf:
            return
        self.deaf = True
        busy = self.is_busy()
        if busy and not self.in_body:
            self.cycle.keep_alive = False
            return
        if self.in_body and (not busy or self.pipeline or self.cycle.response_started):
            # A second answer would be taken for the answer to the next request
            self.transport.close()
            return
        if busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.headers:
            self.headers.clear()  # There may be many of them
        self.write_refusal(status)
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.abort)

    def write_refusal(self, status: int) -> None:
        identifier = choose_request_id(None)
        token = request_id.set(identifier)
        answer = problem(status, REFUSALS[status], {"Connection": "close"})
        client = (self.client[0].removeprefix(MAPPED), 0) if self.client else None
        log_request("-", b"-", client, status, 0)
        request_id.reset(token)
        own = [*self.server_state.default_headers, *answer.raw_headers]
        headers = completed(own, identifier, (*SECURITY_HEADERS, CONTENT_POLICY))
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", answer.body)))
