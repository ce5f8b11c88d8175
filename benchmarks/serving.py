"""What a request takes: with everything around it, of the health route, and of the database."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Protocol

from benchmarks import sides
from benchmarks.load import EDGE, Load, press
from benchmarks.runs import OURS, Effort, Result, Target, interleave
from benchmarks.sides import Server

BARE = "bare FastAPI"
SKELETON = "usual skeleton, 4 workers"
PLAIN = "plain right way, 1 worker"
ROWS = 1000
WARM_UP = 1


@dataclass(frozen=True)
class Pressed:
    """One load on one server."""

    load: Load
    cpu: float
    """Microseconds a request."""
    pss: float
    switches: float
    """Changes of threads a request, which other work on the machine moves little."""


class Pressable(Protocol):
    """A server, or several behind one address."""

    url: str

    def cpu(self) -> float: ...
    def pss(self) -> float: ...
    def switches(self) -> int: ...


def pressing(server: Pressable, path: str, seconds: int, *script: str) -> Callable[[], Pressed]:
    """A measurement, after a load to warm up."""

    def measure() -> Pressed:
        cpu, switches = server.cpu(), server.switches()
        load = press(f"{server.url}{path}", seconds, *script)
        used, requests = server.cpu() - cpu, max(load.requests, 1)
        switched = (server.switches() - switches) / requests
        return Pressed(load, 1e6 * used / requests, server.pss(), switched)

    press(f"{server.url}{path}", WARM_UP, *script)
    return measure


def faults(name: str, found: list[Pressed]) -> list[str]:
    return [
        f"{name}, run {number} of {len(found)}: {fault}"
        for number, one in enumerate(found, 1)
        if (fault := one.load.fault)
    ]


@contextmanager
def ours_and_floor() -> Iterator[tuple[Server, Server]]:
    project = sides.project("default")
    with ExitStack() as stack:
        directory = stack.enter_context(sides.workspace())
        sides.seed(project, directory / "ours", ROWS)
        ours = stack.enter_context(sides.ours(project, directory / "ours"))
        bare = stack.enter_context(sides.floor(project, directory / "bare"))
        ours.wait()
        bare.wait()
        yield ours, bare


def compare(result: Result, ours: list[Pressed], other: list[Pressed], against: str) -> None:
    """The errors of both; rows come after them."""
    result.errors += faults(OURS, ours) + faults(against, other)


def rates(found: list[Pressed]) -> list[float]:
    return [one.load.rate for one in found]


def costs(found: list[Pressed]) -> list[float]:
    return [one.cpu for one in found]


def trivial(effort: Effort) -> Result:
    """A route that does nothing, behind all that the chassis puts before it."""
    least, most = Target("at least", 0.8), Target("at most", 1.3)
    return beside_bare("/trivial", effort, least, most, require=require_stack)


def beside_bare(
    path: str,
    effort: Effort,
    rate: Target,
    cost: Target | None = None,
    require: Callable[[Server], None] = lambda _: None,
) -> Result:
    """A route of ours against a bare one, once the server is as required."""
    result = Result()
    with ours_and_floor() as (ours, bare):
        require(ours)
        mine, theirs = interleave(
            effort.pairs,
            pressing(ours, path, effort.seconds),
            pressing(bare, "/", effort.seconds),
        )
    compare(result, mine, theirs, BARE)
    result.add("requests a second", "1/s", rates(mine), rates(theirs), BARE, rate)
    result.add("CPU a request", "us", costs(mine), costs(theirs), BARE, cost)
    return result


def require_stack(server: Server) -> None:
    """What the benchmark is about is switched on; otherwise it would measure nothing."""
    answer = server.get("/trivial", {**EDGE, "Origin": "https://app.example.com"})
    expected = {
        "X-Request-ID": EDGE["X-Railway-Request-Id"],
        "X-Content-Type-Options": "nosniff",
        "Strict-Transport-Security": "max-age=31536000",
        "Access-Control-Allow-Origin": "https://app.example.com",
    }
    missing = [name for name, value in expected.items() if answer.headers[name] != value]
    if server.get("/trivial", {**EDGE, "Host": "elsewhere.example.com"}).status != 400:
        missing.append("allowed hosts")
    if server.get("/trivial", {**EDGE, "Content-Length": "9999999"}).status != 413:
        missing.append("body limit")
    if not logged(server, f'"request_id": "{EDGE["X-Railway-Request-Id"]}"', EDGE["X-Real-IP"]):
        missing.append("JSON log with the client")
    if missing:
        raise RuntimeError(f"Not active in the rendered project: {', '.join(missing)}")


def logged(server: Server, *texts: str) -> bool:
    """Whether a server's log has these texts; its lines come shortly after the answers."""
    for _ in range(50):
        log = server.log.read_text(encoding="utf-8")
        if all(text in log for text in texts):
            return True
        time.sleep(0.1)
    return False


def health(effort: Effort) -> Result:
    """The health route, with its proof of the database, against a route that does nothing."""
    return beside_bare("/health", effort, Target("at least", 0.35))


def counter(data: Path) -> int:
    with closing(sqlite3.connect(data / "app.db")) as connection:
        (text,) = connection.execute("SELECT text FROM notes WHERE id = 1").fetchone()
        return int(text)


def mixing(server: Pressable, data: Path, seconds: int) -> Callable[[], tuple[Pressed, int]]:
    """The mixed load on a service whose SQLite database is there, and what it has lost."""
    return counting(server, partial(counter, data), seconds)


def counting(
    server: Pressable, counter: Callable[[], int], seconds: int
) -> Callable[[], tuple[Pressed, int]]:
    """The mixed load, and how many acknowledged increments the counter does not have.

    Of those that wrk no longer waited for at its end nobody knows; they cannot hide a loss,
    which shows in two clients that were answered with the same value.
    """
    measure = pressing(server, "/", seconds, "mixed", str(ROWS))

    def counted() -> tuple[Pressed, int]:
        before = counter()
        found = measure()
        time.sleep(0.5)  # what is under way still ends
        missing = found.load.increments - (counter() - before)
        return found, max(found.load.repeated, missing)

    return counted


def mixed(effort: Effort) -> Result:
    """60 % read, 10 % list, 20 % insert, 10 % read-modify-write, from 32 clients."""
    result = Result()
    project = sides.project("default")
    environment = sides.skeleton_environment(project)
    with ExitStack() as stack:
        directory = stack.enter_context(sides.workspace())
        data = [directory / name for name in ("ours", "skeleton", "plain")]
        for each in data:
            sides.seed(project, each, ROWS)
        servers = [
            stack.enter_context(server)
            for server in (
                sides.ours(project, data[0]),
                sides.skeleton(environment, data[1]),
                sides.plain(environment, data[2]),
            )
        ]
        for server in servers:
            server.wait()
        mine, theirs, plainly = interleave(
            effort.pairs,
            *(
                mixing(server, each, effort.seconds)
                for server, each in zip(servers, data, strict=True)
            ),
        )
    here, there, plain = ([one for one, _ in side] for side in (mine, theirs, plainly))
    lost, lost_there, lost_plainly = (
        [float(n) for _, n in side] for side in (mine, theirs, plainly)
    )
    # what another side gets wrong is its figure, not the run's fault
    result.errors += faults(OURS, here)
    if sum(lost):
        result.errors.append(f"{OURS}: {sum(lost):.0f} updates lost")
    add_mixed(result, here, there, SKELETON, rate=1.6, tail=0.25, memory=0.25)
    result.add("updates lost", "", lost, lost_there, SKELETON, Target("at most", 0, "value"))
    errors = [[float(one.load.refused + one.load.broken) for one in side] for side in (here, there)]
    result.add("errors", "", *errors, SKELETON, Target("at most", 0, "value"))
    add_mixed(result, here, plain, PLAIN, rate=1.4, tail=0.2)
    result.add("updates lost", "", lost, lost_plainly, PLAIN)
    share = sum(lost_there) / max(sum(one.load.increments for one in there), 1)
    result.notes.append(f"The usual skeleton lost {share:.0%} of its acknowledged updates.")
    return result


def add_mixed(
    result: Result,
    here: list[Pressed],
    there: list[Pressed],
    against: str,
    *,
    rate: float | None = None,
    tail: float | None = None,
    memory: float | None = None,
    of: str = "",
) -> None:
    """The rows of a mixed load, with the limits of the first three of them."""
    p99 = [[one.load.p99 for one in side] for side in (here, there)]
    pss = [[one.pss for one in side] for side in (here, there)]
    least = Target("at least", rate) if rate else None
    most = Target("at most", tail) if tail else None
    no_more = Target("at most", memory) if memory else None
    result.add(f"{of}requests a second", "1/s", rates(here), rates(there), against, least)
    result.add(f"{of}99 % answered within", "ms", *p99, against, most)
    result.add(f"{of}memory (PSS)", "MB", *pss, against, no_more)
    result.add(f"{of}CPU a request", "us", costs(here), costs(there), against)


def inserts(effort: Effort) -> Result:
    """Durable inserts through HTTP: against a bare route on raw SQLite, and a loop on this disk."""
    result = Result()
    raw = "bare route on raw SQLite"
    with ours_and_floor() as (ours, bare), sides.workspace() as directory:
        project = sides.cache() / "default"
        sides.seed(project, bare.log.parent, ROWS)
        path = sides.seed(project, directory / "loop", ROWS)
        mine, theirs, loop = interleave(
            effort.pairs,
            pressing(ours, "/notes", effort.seconds, "insert"),
            pressing(bare, "/notes", effort.seconds, "insert"),
            lambda: loop_rate(path, effort.seconds / 2),
        )
    compare(result, mine, theirs, raw)
    result.add("CPU an insert", "us", costs(mine), costs(theirs), raw, Target("at most", 1.5))
    result.add("inserts a second", "1/s", rates(mine), rates(theirs), raw)
    result.add("inserts a second", "1/s", rates(mine), loop, "loop in one process")
    return result


def loop_rate(path: Path, seconds: float) -> float:
    """Commits a second, each of them durable."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO notes (text, created_at) VALUES ('loop', '2026-01-31')")
            connection.execute("COMMIT")
            done += 1
        return done / (time.perf_counter() - started)


USD_A_MEGABYTE = 0.01
"""A month of memory on Railway: 10 USD a GB."""


def workers(effort: Effort) -> Result:
    """1 to 4 workers under the mixed load, each against one."""
    result = Result()
    project = sides.project("default")
    with ExitStack() as stack:
        directory = stack.enter_context(sides.workspace())
        loads = []
        for number in range(1, 5):
            data = directory / str(number)
            sides.seed(project, data, ROWS)
            server = stack.enter_context(sides.ours(project, data, WORKERS=str(number)))
            server.wait()
            loads.append(mixing(server, data, effort.seconds))
        found = interleave(effort.pairs, *loads)
    for number, runs in enumerate(found, 1):
        result.errors += faults(f"{number} workers", [one for one, _ in runs])
        if lost := sum(lost for _, lost in runs):
            result.errors.append(f"{number} workers: {lost} updates lost")
    one = [run for run, _ in found[0]]
    for number, runs in enumerate(found, 1):
        these = [run for run, _ in runs]
        name = f"{number} worker{'s' if number > 1 else ''}"
        figures = [
            ("requests a second", "1/s", rates(these), rates(one)),
            ("99 % within", "ms", [run.load.p99 for run in these], [run.load.p99 for run in one]),
            ("memory (PSS)", "MB", [run.pss for run in these], [run.pss for run in one]),
        ]
        for what, unit, mine, theirs in figures:
            pairs = (theirs, "1 worker") if number > 1 else ((), "")
            result.add(f"{name}: {what}", unit, mine, *pairs)
        cost = median(run.pss for run in these) * USD_A_MEGABYTE
        result.notes.append(f"{name}: its memory costs {cost:.2f} USD a month.")
    return result


def rows(effort: Effort) -> Result:
    """A database that has grown, against a small one."""
    result = Result()
    sizes = (10**3, 10**5, 10**6)[: 2 if effort.quick else 3]
    kinds = {"read": 1 / 1.3, "list": 1 / 1.3, "insert": 1 / 1.3}
    project = sides.project("default")
    found: dict[str, list[list[Pressed]]] = {}
    with ExitStack() as stack:
        directory = stack.enter_context(sides.workspace())
        servers = []
        for size in sizes:
            data = directory / str(size)
            sides.seed(project, data, size)
            servers.append(stack.enter_context(sides.ours(project, data)))
            servers[-1].wait()
        for kind in kinds:
            loads = [
                pressing(server, "/", effort.seconds, kind, str(size))
                for server, size in zip(servers, sizes, strict=True)
            ]
            found[kind] = interleave(effort.pairs, *loads)
    for kind, by_size in found.items():
        for size, runs in zip(sizes, by_size, strict=True):
            result.errors += faults(f"{kind} of {size} rows", runs)
    for kind, (small, *others) in found.items():
        for size, runs in zip(sizes[1:], others, strict=True):
            target = Target("at least", round(kinds[kind], 3))
            what = f"{kind}, {size:,} rows"
            result.add(what, "1/s", rates(runs), rates(small), f"{sizes[0]:,} rows", target)
    return result
