"""Thousands of event streams that stay open, and what they leave for other requests."""

import asyncio
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import quantiles

from benchmarks import sides
from benchmarks.runs import Effort, Result, Target, interleave
from benchmarks.sides import Server

CROWDS = (1000, 4000)
OTHER_FILES = 256
"""Open files, on either side, that are no streams."""
HEARTBEAT = 15
PAUSE = 0.02
BARE = "FastAPI's own streams"


class Listener(asyncio.Protocol):
    """A client that counts what it hears, and keeps none of it."""

    def __init__(self, port: int) -> None:
        self.request = f"GET /waiting HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
        self.open = asyncio.get_running_loop().create_future()
        self.chunks = 0
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.chunks += 1
        if not self.open.done() and b"data: " in data:
            self.open.set_result(b" 200 " in data or self.chunks > 1)

    def connection_lost(self, _: Exception | None) -> None:
        self.ended = True
        if not self.open.done():
            self.open.set_result(False)


class Silence(Exception):
    """Some streams did not open, or not stay open."""


async def connect(server: Server, number: int) -> list[Listener]:
    few = asyncio.Semaphore(20)
    loop = asyncio.get_running_loop()

    async def one() -> Listener:
        async with few:
            _, listener = await loop.create_connection(
                lambda: Listener(server.port), "127.0.0.1", server.port
            )
            async with asyncio.timeout(sides.DEADLINE):
                if not await listener.open:
                    raise Silence(f"{server.name}: a stream was refused")
            return listener

    return list(await asyncio.gather(*(one() for _ in range(number))))


async def live(server: Server, path: str, seconds: float) -> list[float]:
    """The milliseconds of a request after the other on one connection, 50 a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    request = f"GET {path} HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode()
    taken = []
    deadline = time.perf_counter() + seconds
    while (started := time.perf_counter()) < deadline:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise Silence(f"{server.name}: {path} is not answered well")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        taken.append(1000 * (time.perf_counter() - started))
        await asyncio.sleep(PAUSE)
    writer.close()
    return taken


async def hold(server: Server, path: str, number: int, seconds: float) -> tuple[float, float]:
    """KB a stream, and the milliseconds within which 99 % of the requests are answered."""
    for listener in await connect(server, 50):  # what the first ones load is not theirs
        listener.transport.close()
    await live(server, path, 1)
    before = server.pss()
    listeners = await connect(server, number)
    try:
        taken = await live(server, path, seconds)
        memory = server.pss() - before
        if ended := sum(listener.ended for listener in listeners):
            raise Silence(f"{server.name}: {ended} of {number} streams ended")
        if seconds > HEARTBEAT and (silent := sum(one.chunks < 2 for one in listeners)):
            raise Silence(f"{server.name}: {silent} of {number} streams had no heartbeat")
    finally:
        for listener in listeners:
            listener.transport.close()
    return 1024 * memory / number, quantiles(taken, n=100)[98]


def streams(effort: Effort) -> Result:
    """Open streams in one worker, and the answers of a health route meanwhile."""
    result = Result()
    project = sides.project("default")
    seconds = 3 if effort.quick else HEARTBEAT + 5
    times = 1 if effort.quick else max(2, effort.pairs // 2)

    def ours(number: int) -> tuple[float, float]:
        with sides.workspace() as directory, sides.ours(project, directory / "data") as server:
            server.wait()
            return asyncio.run(hold(server, "/health/live", number, seconds))

    def bare(number: int) -> tuple[float, float]:
        with sides.workspace() as directory, sides.floor(project, directory) as server:
            server.wait()
            return asyncio.run(hold(server, "/", number, seconds))

    for number in CROWDS:
        name = f"{number:,} streams"
        try:
            with files_allowed(number + OTHER_FILES):
                mine, theirs = interleave(times, lambda: ours(number), lambda: bare(number))  # noqa: B023
        except (Silence, OSError) as error:
            result.errors.append(f"{name}: {error}")
            continue
        for column, what, unit, limit in (
            (0, "memory a stream (PSS)", "KB", 40),
            (1, "99 % of /health/live within", "ms", 20),
        ):
            here, there = [run[column] for run in mine], [run[column] for run in theirs]
            target = Target("at most", limit, "value")
            result.add(f"{name}: {what}", unit, here, there, BARE, target)
    return result


@contextmanager
def files_allowed(number: int) -> Iterator[None]:
    """That many open files, here and in what is started meanwhile.

    Raises:
        OSError: The machine's limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise OSError(f"only {hard} open files are allowed here, {number} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
    try:
        yield
    finally:
        with suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
