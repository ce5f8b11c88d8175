"""Several containers on one PostgreSQL server, against SQLite, and against the usual skeleton."""

import http.client
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import deploying, sides
from benchmarks.edge import Edge
from benchmarks.runs import OURS, Effort, Result, Target, interleave
from benchmarks.serving import ROWS, Pressed, add_mixed, counter, counting, faults

SQLITE = "the same on SQLite, 1 container"
ASYNCHRONOUS = "usual skeleton on asyncpg"
ON_DISK = "/var/tmp"
"""Where the server has its data: /tmp may be in memory, and it runs as another user than root."""

DELAY = 3
"""Seconds that a replica goes on after SIGTERM; in production ten."""

APART = 1.0
"""Seconds from SIGTERM until the edge knows of it."""

SEED = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute(
        "INSERT INTO notes (text, created_at) SELECT CASE n WHEN 1 THEN '0' ELSE 'note ' || n || "
        "' of the benchmark' END, '2026-01-31 09:30' FROM generate_series(1, %s) AS n",
        [int(sys.argv[2])],
    )
    connection.execute("ANALYZE")
"""
COUNT = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection, open(sys.argv[2], "w") as file:
    file.write(connection.execute("SELECT text FROM notes WHERE id = 1").fetchone()[0])
"""


@dataclass
class Ground:
    """What the sides of one run have in common."""

    project: Path
    environment: Path
    directory: Path
    urls: Iterator[str]

    def database(self) -> str:
        """The address of one more database, with the schema and the rows."""
        url = next(self.urls)
        python, variables = self.python, sides.variables(self.directory, 8000, DATABASE_URL=url)
        sides.run(python, "-m", "app", "migrate", cwd=self.project, **variables)
        sides.run(python, "-c", SEED, url, str(ROWS))
        return url

    @property
    def python(self) -> Path:
        return self.project / ".venv/bin/python"

    def count(self, url: str) -> int:
        """The counter there."""
        found = self.directory / "count"
        sides.run(self.python, "-c", COUNT, url, found)
        return int(found.read_text())

    def ours(self, url: str) -> sides.Server:
        """One replica of the rendered project."""
        data = Path(tempfile.mkdtemp(dir=self.directory))
        return sides.ours(self.project, data, DATABASE_URL=url, STOP_DELAY=str(DELAY))

    def asynchronous(self, url: str) -> sides.Server:
        """One replica of the usual skeleton, with one worker, as ours."""
        data = Path(tempfile.mkdtemp(dir=self.directory))
        module, url = "benchmarks.asynchronous.main:app", url.replace("://", "+asyncpg://")
        return sides.in_gunicorn(ASYNCHRONOUS, module, self.environment, data, 1, url)

    def edge(self, stack: ExitStack, *servers: sides.Server) -> Edge:
        """An address before servers, once all of them are ready."""
        for server in servers:
            stack.enter_context(server)
        for server in servers:
            server.wait()
        directory = Path(tempfile.mkdtemp(dir=self.directory)) / "edge"
        edge = stack.enter_context(Edge(directory, *servers))
        edge.wait()
        return edge


@contextmanager
def ground(databases: int) -> Iterator[Ground]:
    """A server with so many empty databases, and what is needed to run both sides on it."""
    project = sides.project("postgresql", "database=postgresql", dev=True)
    environment = sides.skeleton_environment(project, "asyncpg")
    with ExitStack() as stack:
        directory = stack.enter_context(sides.workspace())
        command = [project / ".venv/bin/python", sides.ROOT / "benchmarks/served.py"]
        variables = {"TMPDIR": ON_DISK, "PYTHONPATH": str(project)}
        server = stack.enter_context(
            sides.Server(
                "PostgreSQL", [*command, str(databases)], 0, directory, project, variables, ""
            )
        )
        yield Ground(project, environment, directory, iter(addresses(server)))


def addresses(server: sides.Server) -> list[str]:
    """What a server of served.py tells once it is ready.

    Raises:
        RuntimeError: It has ended, or is not ready in time.
    """
    while not (text := server.log.read_text()).endswith("]\n"):
        if server.process.poll() is not None or time.perf_counter() > server.started + 60:
            raise RuntimeError(f"{server.name} did not start:\n{text[-2000:]}")
        time.sleep(0.05)
    found: list[str] = json.loads(text.splitlines()[-1])
    return found


def postgresql(effort: Effort) -> Result:
    """The mixed load on 1 and 2 replicas behind an edge, and a rolling deploy, on PostgreSQL."""
    result = Result()
    on_sqlite = sides.project("default")
    with ground(6) as here:
        data = here.directory / "sqlite"
        sides.seed(on_sqlite, data, ROWS)
        with ExitStack() as stack:
            sqlite = here.edge(stack, sides.ours(on_sqlite, data))
            loads = [counting(sqlite, partial(counter, data), effort.seconds)]
            for make in (here.ours, here.asynchronous):
                for replicas in (1, 2):
                    url = here.database()
                    edge = here.edge(stack, *(make(url) for _ in range(replicas)))
                    loads.append(counting(edge, partial(here.count, url), effort.seconds))
            small, *found = interleave(effort.pairs, *loads)
        deploys = interleave(
            effort.pairs,
            partial(roll, here, here.ours, here.database()),
            partial(roll, here, here.asynchronous, here.database()),
        )
        gaps = [deploying.gap(on_sqlite, data) for _ in range(effort.pairs)]
    for number in (1, 2):
        add_load(result, number, found[number - 1], found[number + 1], small)
    add_deploys(result, *deploys, gaps)
    return result


def add_load(
    result: Result,
    number: int,
    ours: Sequence[tuple[Pressed, int]],
    theirs: Sequence[tuple[Pressed, int]],
    sqlite: Sequence[tuple[Pressed, int]],
) -> None:
    """The rows of so many replicas."""
    of = f"{number} replica{'s' if number > 1 else ''}: "
    here, there, small = ([one for one, _ in side] for side in (ours, theirs, sqlite))
    lost, lost_there, lost_small = ([float(n) for _, n in side] for side in (ours, theirs, sqlite))
    result.errors += faults(f"{OURS}, {of.rstrip(': ')}", here)
    result.errors += [f"{SQLITE}: {one}" for one in faults("the mixed load", small)]
    if sum(lost):
        result.errors.append(f"{OURS}, {of}{sum(lost):.0f} updates lost")
    if not sum(lost_there):
        result.errors.append(f"{ASYNCHRONOUS}, {of}nothing was lost, so nobody could see a loss")
    none = Target("at most", 0, "value")
    add_mixed(result, here, there, ASYNCHRONOUS, rate=0.9, tail=1, memory=1, of=of)
    result.add(f"{of}updates lost", "", lost, lost_there, ASYNCHRONOUS, none)
    errors = [[float(one.load.refused + one.load.broken) for one in side] for side in (here, there)]
    result.add(f"{of}errors", "", *errors, ASYNCHRONOUS, none)
    add_mixed(result, here, small, SQLITE, of=of)
    result.add(f"{of}updates lost", "", lost, lost_small, SQLITE)
    share = sum(lost_there) / max(sum(one.load.increments for one in there), 1)
    result.notes.append(f"{of}the usual skeleton lost {share:.0%} of its acknowledged updates.")


@dataclass
class Deploy:
    """Seconds and numbers, as the clients of a rolling deploy have seen it."""

    gap: float = 0
    """The longest time from a request that failed to the client's next good answer."""
    failed: int = 0
    good: int = 0


def roll(here: Ground, make: Callable[[str], sides.Server], url: str) -> Deploy:
    """Replace a replica under 8 clients, which hears of it before the edge does.

    Raises:
        RuntimeError: One of them does not start, or does not end well.
    """
    over = threading.Event()
    with ExitStack() as stack:
        old = make(url)
        edge = here.edge(stack, old)
        seen = [Deploy() for _ in range(deploying.CLIENTS)]
        clients = [threading.Thread(target=ask, args=(edge.port, one, over)) for one in seen]
        stack.callback(over.set)
        for client in clients:
            client.start()
        time.sleep(deploying.BEFORE)
        new = stack.enter_context(make(url))
        new.wait()
        os.kill(old.pid, signal.SIGTERM)
        time.sleep(APART)
        edge.lead_to(new)
        ended = old.process.wait(sides.DEADLINE)
        time.sleep(deploying.BEFORE)
        over.set()
        for client in clients:
            client.join()
        if ended or not all(one.good for one in seen):
            raise RuntimeError(f"The deploy failed:\n{old.log.read_text()[-2000:]}")
    return Deploy(
        max(one.gap for one in seen),
        sum(one.failed for one in seen),
        sum(one.good for one in seen),
    )


def ask(port: int, seen: Deploy, over: threading.Event) -> None:
    """Ask one question after the other, and count the answers."""
    failing: float | None = None
    while not over.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with closing(connection):
            while not over.is_set():
                asked = time.perf_counter()
                if is_answered(connection):
                    seen.good += 1
                    if failing is not None:
                        seen.gap = max(seen.gap, time.perf_counter() - failing)
                    failing = None
                else:
                    seen.failed += 1
                    failing = asked if failing is None else failing
                    time.sleep(deploying.PAUSE)
                    break


def is_answered(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.request("GET", "/notes/1")
        response = connection.getresponse()
        response.read()
    except deploying.GONE:
        return False
    return response.status == 200


def add_deploys(
    result: Result, ours: Sequence[Deploy], theirs: Sequence[Deploy], gaps: Sequence[float]
) -> None:
    """The rows of the deploys; on SQLite, the time without anybody who answers."""
    here, there = ([one.gap for one in side] for side in (ours, theirs))
    none = Target("at most", 0, "value")
    result.add("a deploy: without an answer", "s", here, there, ASYNCHRONOUS, none)
    result.add("a deploy: without an answer", "s", here, gaps, SQLITE)
    failed = [[float(one.failed) for one in side] for side in (ours, theirs)]
    result.add("a deploy: requests that failed", "", *failed, ASYNCHRONOUS, none)
