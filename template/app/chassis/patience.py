# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Protocol that ends a connection when its client takes nothing more of its answer.

uvicorn waits for such a client for ever, and a stop waits with it. A slow client may stay. The
kernel knows how many bytes have arrived, and one byte in time is enough.
"""

import asyncio
import socket
import struct
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.chassis import deadlines

BYTES_ACKED: Final = 120
"""Offset in tcp_info (linux/tcp.h) of the number of bytes that the client has confirmed."""


class PatientProtocol(HttpToolsProtocol):
    """Protocol of uvicorn for one connection, which ends when its client takes nothing any more."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.patience: float = deadlines.UNREAD
        self.arrived = 0
        self.next_look: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Watch whether a client that is slower than its answer takes any of it."""
        super().pause_writing()
        if self.next_look is None:
            self.watch()

    def shutdown(self) -> None:
        """Give the client less time, because the service stops."""
        super().shutdown()
        self.patience = deadlines.UNREAD_AT_A_STOP
        self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.look_no_more()

    def watch(self) -> None:
        self.look_no_more()
        self.arrived = self.bytes_arrived()
        self.next_look = self.loop.call_later(self.patience, self.look)

    def look(self) -> None:
        self.next_look = None
        if self.transport.get_write_buffer_size() and self.bytes_arrived() == self.arrived:
            self.transport.abort()
        elif self.flow.write_paused or self.patience == deadlines.UNREAD_AT_A_STOP:
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
