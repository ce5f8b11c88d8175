"""A day of a small service in some minutes: what grows?"""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import measure, sides
from benchmarks.runs import Effort, Result, Target
from benchmarks.serving import ROWS
from benchmarks.sides import Server

RATE = 144
"""Requests a second: in ten minutes, a day with one request a second."""
CLIENTS = 8
WARM_UP = 60.0
SAMPLES = 5
AFTER = "after a minute"


@dataclass(frozen=True)
class State:
    """Of the service, at one time."""

    pss: float
    files: float
    log: float
    """Megabytes of the write-ahead log, which is not shortened but written anew."""


def request(method: str, path: str, body: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


INSERT = request("POST", "/notes", '{"text":"written by the benchmark"}')
INCREMENT = request("POST", "/counters/1/increment")


def one_of_the_mix(chance: random.Random) -> bytes:
    """As load.lua has them: 60 % read, 10 % list, 20 % insert, 10 % read-modify-write."""
    number = chance.randrange(100)
    if number < 60:
        return request("GET", f"/notes/{chance.randint(2, ROWS)}")
    if number < 70:
        return request("GET", f"/notes?limit=20&after={chance.randint(1, ROWS)}")
    return INSERT if number < 90 else INCREMENT


class Load:
    """Clients at a steady rate, however long an answer takes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = 0
        self.refused = 0
        self.broken = 0
        self.late = 0.0
        """How many seconds the clients are behind their rate, at worst."""

    async def client(self, number: int, end: float) -> None:
        chance = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        due = time.monotonic() + number / RATE
        while due < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.late = max(self.late, time.monotonic() - due)
            try:
                writer.write(one_of_the_mix(chance))
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
            except (OSError, asyncio.IncompleteReadError):
                self.broken += 1
                return
            self.answered += 1
            self.refused += head.partition(b" ")[2][:1] != b"2"
            due += CLIENTS / RATE
        writer.close()


async def watch(server: Server, log: Path) -> State:
    """The middle of a few looks."""
    states = []
    for _ in range(SAMPLES):
        await asyncio.sleep(1)
        size = log.stat().st_size / 1e6
        states.append(State(server.pss(), measure.open_files(server.pid), size))
    return State(
        *(median(getattr(one, name) for one in states) for name in ("pss", "files", "log"))
    )


async def press(server: Server, log: Path, seconds: float) -> tuple[Load, State, State]:
    load = Load(server.port)
    end = time.monotonic() + WARM_UP + seconds + SAMPLES
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(load.client(number, end))
        await asyncio.sleep(WARM_UP - SAMPLES)
        before = await watch(server, log)
        await asyncio.sleep(max(0.0, end - time.monotonic() - 2 * SAMPLES))
        after = await watch(server, log)
    return load, before, after


def soak(effort: Effort) -> Result:
    """A day's requests in some minutes: memory, open files and the write-ahead log."""
    result = Result()
    project = sides.project("default")
    with sides.workspace() as directory:
        path = sides.seed(project, directory / "data", ROWS)
        with sides.ours(project, directory / "data") as server:
            server.wait()
            log = path.with_name(f"{path.name}-wal")
            load, before, after = asyncio.run(press(server, log, 60 * effort.minutes))
    if load.refused:
        result.errors.append(f"{load.refused} of {load.answered} answers from 400 on")
    if load.broken:
        result.errors.append(f"{load.broken} of {CLIENTS} clients lost their connection")
    for name, what, unit, limit in (
        ("pss", "memory (PSS)", "MB", 1.02),
        ("files", "open files", "", 1.0),
        ("log", "write-ahead log", "MB", 1.05),
    ):
        target = Target("at most", limit)
        result.add(what, unit, [getattr(after, name)], [getattr(before, name)], AFTER, target)
    result.notes.append(
        f"{load.answered:,} requests at {RATE} a second in {effort.minutes + 1:g} minutes, "
        f"at worst {1000 * load.late:.0f} ms late."
    )
    return result
