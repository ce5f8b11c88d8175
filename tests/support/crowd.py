"""Hundreds of clients at once, and what they cost the process that serves them."""

import asyncio
import json
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.service import DEADLINE, Service


@dataclass
class Crowd:
    """Streams that are open."""

    readers: list[asyncio.StreamReader]

    async def read_until(self, text: str) -> None:
        """Wait until that has come to each of them."""
        await asyncio.gather(*(reader.readuntil(text.encode()) for reader in self.readers))


@asynccontextmanager
async def crowd(service: Service, number: int, text: str = "Hi") -> AsyncIterator[Crowd]:
    """So many streams of answers, each in a thread of its own.

    A client that knows HTTP would need more of the processor than the service does.
    """
    few = asyncio.Semaphore(10)
    writers = []

    async def connect() -> asyncio.StreamReader:
        async with few:
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writers.append(writer)
            post(writer, "/threads", {})
            await reader.readuntil(b'{"id":')
            thread = int((await reader.readuntil(b",")).removesuffix(b","))
            post(writer, f"/threads/{thread}/chat", {"text": text})
            await reader.readuntil(b"text/event-stream")
            return reader

    try:
        async with asyncio.timeout(2 * DEADLINE):
            yield Crowd(await asyncio.gather(*(connect() for _ in range(number))))
    finally:
        for writer in writers:
            writer.close()


def post(writer: asyncio.StreamWriter, path: str, body: dict[str, str]) -> None:
    content = json.dumps(body)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n{content}".encode()
    )


@contextmanager
def files_allowed(number: int) -> Iterator[None]:
    """That many open files, here and in what is started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(pid: int) -> int:
    """Proportional set size in KB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
