"""Concurrent reads, inserts and read-modify-writes through HTTP: nothing is lost or "locked"."""

import asyncio
import json
import sqlite3
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service import Service, router_added

pytestmark = pytest.mark.long

CLIENTS = 32
SECONDS = 60.0
INSERT_SECONDS = 3.0
RAW_SECONDS = 1.0

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

# the same SQLite and the same durability, without anything around it
RAW = """
import sys
import time
from pathlib import Path

from app.chassis.sqlite.driver import open_database

connection = open_database(Path(sys.argv[1]), create=True)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA synchronous=FULL")
connection.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT)")
commits, start = 0, time.monotonic()
while time.monotonic() < start + float(sys.argv[2]):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO notes (text) VALUES ('under load')")
    connection.execute("COMMIT")
    commits += 1
print(commits / (time.monotonic() - start))
"""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed()
    with router_added(project, "counters", COUNTERS):
        yield project


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
    """What the clients of one run have seen. They share one thread, to leave the CPU alone."""

    def __init__(self, port: int, requests: list[tuple[str, str, str]], seconds: float) -> None:
        self.port = port
        self.requests = requests
        self.latencies: dict[str, list[float]] = defaultdict(list)
        self.refused: Counter[str] = Counter()
        self.stale_reads = 0
        self.workers: Counter[bytes] = Counter()
        """Which of them has answered how many reads of the counter."""
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    def run(self) -> "Load":
        asyncio.run(self._run())
        return self

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        counted = 0
        while time.monotonic() < self._until:
            # A new connection now and then: all that are opened at once may go to one worker.
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            # not all of them at the same place
            first = number % len(self.requests)
            for method, path, body in self.requests[first:] + self.requests[:first]:
                start = time.monotonic()
                headers, status, answer = await exchange(reader, writer, method, path, body)
                name = f"{method} {path.partition('?')[0]}"
                if status >= 300:
                    self.refused[f"{name} {status}"] += 1
                    continue
                self.latencies[name].append(time.monotonic() - start)
                if path == "/counter":
                    # a client never sees less than it was told before
                    self.stale_reads += int(answer) < counted
                    counted = int(answer)
                if b"x-worker" in headers:
                    self.workers[headers[b"x-worker"]] += 1
            writer.close()
            await writer.wait_closed()

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


def raw_commits(project: Path, directory: Path) -> float:
    """Commits a second of a bare loop on the same disk."""
    command = [project / ".venv/bin/python", "-c", RAW, directory / "raw.db", str(RAW_SECONDS)]
    done = subprocess.run(command, cwd=project, check=True, capture_output=True, encoding="utf-8")
    return float(done.stdout)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_no_update_is_lost_under_load(
    project: Path,
    tmp_path: Path,
    workers: int,
    record_property: Callable[[str, object], None],
) -> None:
    data = tmp_path / "data"
    variables = {"WORKERS": str(workers), "LOG_LEVEL": "WARNING"}
    with Service(project, data, **variables).wait_until_healthy() as service:
        assert service.client.put("/counter").status_code == 200
        mixed = Load(service.port, MIX, SECONDS).run()
        total = service.client.get("/counter").json()
        before = raw_commits(project, tmp_path)
        inserts = Load(service.port, [INSERT] * 6, INSERT_SECONDS).run()
        after = raw_commits(project, tmp_path)
        service.terminate()
        assert service.ended() == 0

    durable, raw = inserts.done("POST /notes") / INSERT_SECONDS, (before + after) / 2
    record_property("mixed", mixed.figures())
    record_property("reads of the counter a worker", sorted(mixed.workers.values()))
    record_property("inserts alone", inserts.figures())
    record_property("commits/s of a bare loop before and after", f"{before:.0f}, {after:.0f}")
    record_property("durable inserts to bare commits", f"{durable / raw:.0%}")
    assert total == mixed.done("POST /counter") > 0
    assert mixed.stale_reads == 0
    assert not mixed.refused + inserts.refused
    assert len(mixed.workers) == workers
    with closing(sqlite3.connect(data / "app.db")) as connection:
        (kept,) = connection.execute("SELECT count(*) FROM notes").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert kept == mixed.done("POST /notes") + inserts.done("POST /notes") > 0
    assert "locked" not in service.output()
    assert "busy" not in service.output()
