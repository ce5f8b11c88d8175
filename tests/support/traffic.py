"""Clients that read, add and change all the time, and those that follow the notes' stream."""

import asyncio
import json
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx2 as httpx

from support.service import DEADLINE

CLIENTS = 32

COUNTERS = """
import os

from fastapi import APIRouter, Response
from sqlalchemy import text

from app.chassis.database import Reader, Writer
from app.chassis.routing import DatabaseRoute

router = APIRouter(prefix="/counter", route_class=DatabaseRoute)


@router.put("")
def create(session: Writer) -> None:
    session.execute(text("CREATE TABLE counter (value INTEGER)"))
    session.execute(text("INSERT INTO counter VALUES (0)"))


@router.post("")
def increment(session: Writer) -> int:
    value = session.execute(text("SELECT value FROM counter")).scalar_one()
    session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})
    return value + 1


@router.get("")
def read(session: Reader, response: Response) -> int:
    response.headers["X-Worker"] = str(os.getpid())
    return session.execute(text("SELECT value FROM counter")).scalar_one()
"""

INSERT = ("POST", "/notes", json.dumps({"text": "under load"}))
UPDATE = ("POST", "/counter", "")
MIX = [UPDATE, ("GET", "/notes?limit=10", ""), UPDATE, INSERT, UPDATE, ("GET", "/counter", "")]


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: str
) -> tuple[dict[bytes, bytes], int, bytes]:
    """The headers, status and body that answer a request; a client library costs the CPU more."""
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")[:-2]
    headers = dict(line.lower().split(b": ", 1) for line in lines)
    answer = await reader.readexactly(int(headers[b"content-length"]))
    return headers, int(status.split(b" ", 2)[1]), answer


class Load:
    """What the clients of one run have seen. They share one thread, to leave the CPU alone.

    Args:
        port: Of the service, or of what is before it.
        requests: What each client does in turn, not all of them from the same one on.
        seconds: How long, if it is not stopped before.
        clients: How many of them.
        pause: Seconds after each request.
        fresh: Whether each request has a connection of its own.
    """

    def __init__(
        self,
        port: int,
        requests: list[tuple[str, str, str]],
        seconds: float,
        clients: int = CLIENTS,
        pause: float = 0,
        *,
        fresh: bool = False,
    ) -> None:
        self.port = port
        self.requests = requests
        self.clients = clients
        self.pause = pause
        # A new connection now and then: all that are opened at once may go to one worker.
        self.kept = 1 if fresh else len(requests)
        self.latencies: dict[str, list[float]] = defaultdict(list)
        self.refused: Counter[str] = Counter()
        self.busy = 0
        """How many were asked to come back later, which are not among those refused."""
        self.cut: Counter[str] = Counter()
        """How many got no whole answer, by the error."""
        self.stale_reads = 0
        self.workers: Counter[bytes] = Counter()
        """Which of them has answered how many reads of the counter."""
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    def run(self) -> "Load":
        asyncio.run(self._run())
        return self

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """It, in a thread, until the end of the block."""
        began = time.monotonic()
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._until = 0
            thread.join(DEADLINE)
            self.seconds = time.monotonic() - began
        assert not thread.is_alive()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self.clients):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        first = number % len(self.requests)
        requests = self.requests[first:] + self.requests[:first]
        counted, place = 0, 0
        while time.monotonic() < self._until:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                self.cut[f"connect: {error!r}"] += 1
                await asyncio.sleep(0.05)
                continue
            for _ in range(self.kept):
                request = requests[place % len(requests)]
                place += 1
                try:
                    counted = await self._ask(reader, writer, request, counted)
                except (OSError, asyncio.IncompleteReadError) as error:
                    self.cut[f"{request[0]} {request[1]}: {error!r}"] += 1
                    break
                await asyncio.sleep(self.pause)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: tuple[str, str, str],
        counted: int,
    ) -> int:
        """Send a request, and return what the counter was when this client last heard of it."""
        method, path, body = request
        start = time.monotonic()
        headers, status, answer = await exchange(reader, writer, method, path, body)
        name = f"{method} {path.partition('?')[0]}"
        if status == 503 and b"retry-after" in headers:
            self.busy += 1
        elif status >= 300:
            self.refused[f"{name} {status}"] += 1
        else:
            self.latencies[name].append(time.monotonic() - start)
            if b"x-worker" in headers:
                self.workers[headers[b"x-worker"]] += 1
            if path == "/counter":
                # a client never sees less than it was told before
                self.stale_reads += int(answer) < counted
                return int(answer)
        return counted

    def done(self, name: str) -> int:
        return len(self.latencies[name])

    def figures(self) -> str:
        total = sum(map(len, self.latencies.values()))
        parts = [f"{total / self.seconds:.0f} requests/s"]
        for name, latencies in sorted(self.latencies.items()):
            cuts = statistics.quantiles(latencies, n=100)
            parts.append(
                f"{name} {len(latencies) / self.seconds:.0f}/s, "
                f"p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms"
            )
        return "; ".join(parts)


class Follower:
    """A client of the notes' stream, which comes back with Last-Event-ID whenever it ends.

    Args:
        url: The service, or what is before it.
        after: The last id before the first one that it wants.
        patience: Seconds after which it leaves by itself, to come back.
    """

    def __init__(self, url: str, after: int, patience: float = float("inf")) -> None:
        self.url = url
        self.after = after
        self.patience = patience
        self.ids: list[int] = []
        self.ends: Counter[str] = Counter()
        """How its connections have ended: with which event, by itself, or by an error."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        # without connections that are kept, because the other end may be another process each time
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=self.url, timeout=DEADLINE, limits=limits) as client:
            while not self._stop.is_set():
                last = self.ids[-1] if self.ids else self.after
                try:
                    end = self._read(client, {"Last-Event-ID": str(last)})
                except httpx.TransportError as error:
                    end = repr(error)
                    time.sleep(0.05)
                self.ends[end] += 1

    def _read(self, client: httpx.Client, headers: dict[str, str]) -> str:
        event, leaves = "", time.monotonic() + self.patience
        with client.stream("GET", "/notes/stream", headers=headers) as answer:
            if answer.status_code != 200:
                time.sleep(0.05)
                return str(answer.status_code)
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("id: "):
                    self.ids.append(int(line.removeprefix("id: ")))
                if self._stop.is_set() or time.monotonic() > leaves:
                    return "left"
        return event

    def wait_for(self, note: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while note not in self.ids[-1000:]:
            assert time.monotonic() < deadline, f"{note} has not come: {self.ids[-5:]}, {self.ends}"
            time.sleep(0.02)


@contextmanager
def following(url: str, clients: int, patience: float = float("inf")) -> Iterator[list[Follower]]:
    """So many clients that follow the notes that come from now on, until the end of the block.

    The last of them is a note that is written here, which each of them has got when the block ends.
    """

    def write(text: str) -> int:
        answer = httpx.post(f"{url}/notes", json={"text": text}, timeout=DEADLINE)
        assert answer.status_code == 201, answer.text
        note: int = answer.json()["id"]
        return note

    first = write("first")
    followers = [Follower(url, first, patience) for _ in range(clients)]
    for follower in followers:
        follower._thread.start()
    try:
        yield followers
        last = write("last")
        for follower in followers:
            follower.wait_for(last)
    finally:
        for follower in followers:
            follower._stop.set()
    # one more event for those who wait for one
    write("one more")
    for follower in followers:
        follower._thread.join(DEADLINE)
        assert not follower._thread.is_alive()
