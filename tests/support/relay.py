"""A TCP relay, for a server whose address leads elsewhere or nowhere."""

import ctypes
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27

NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
"""The kernel's program for a socket that takes no packet, and so acknowledges none."""


class Relay:
    """Connections to a port of this machine, passed on to the target port of the moment.

    Args:
        target: The port.
        delay: Seconds that the target's answers take longer.
    """

    def __init__(self, target: int, delay: float = 0) -> None:
        self.target = target
        self.delay = delay
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.passing = threading.Event()
        self.passing.set()
        self.clients: list[socket.socket] = []
        self.servers: list[socket.socket] = []

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.clients.append(client)
                threading.Thread(target=self.connect, args=(client,), daemon=True).start()

    def connect(self, client: socket.socket) -> None:
        self.passing.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        self.servers.append(server)
        for flow in ((client, server, 0), (server, client, self.delay)):
            threading.Thread(target=self.pump, args=flow, daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.passing.wait()
                time.sleep(delay)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End every connection."""
        for connection in (*self.clients, *self.servers):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Let every packet to the server be lost, as by a network that is down."""
        self.passing.clear()
        program = struct.pack("HL", 1, ctypes.addressof(NOTHING))
        ends = [self.listener, *self.clients]
        for end in ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        try:
            yield
        finally:
            for end in ends:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            self.passing.set()

    def lead_to(self, target: int) -> None:
        """Change the address."""
        self.target = target
        self.cut()

    def __enter__(self) -> Self:
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.cut()
        self.passing.set()
