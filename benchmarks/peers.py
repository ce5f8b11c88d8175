"""Two templates from PyPI, each made, installed and started as its documentation says."""

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import sides
from benchmarks.runs import OURS, Effort, Result, interleave
from benchmarks.serving import ROWS, Pressed, costs, faults, pressing, rates
from benchmarks.sides import Server
from benchmarks.starting import rest

LIVE_AND_PROVEN = ("/health/live", "/health")
"""Our own health routes: that the process answers, and that the database can be written."""

MINUTES = 5
"""The most that a step of making or installing a project may take."""


@dataclass(frozen=True)
class Table:
    """What a service lists and inserts by default: where over HTTP, and its rows in `app.db`."""

    name: str
    list: str
    insert: tuple[str, str, dict[str, str]]

    @property
    def script(self) -> list[str]:
        """Arguments for load.lua."""
        method, path, body = self.insert
        return ["table", self.list, method, path, json.dumps(body)]

    def count(self, data: Path) -> int:
        with closing(sqlite3.connect(data / "app.db")) as connection:
            (number,) = connection.execute(f"SELECT count(*) FROM {self.name}").fetchone()
            return int(number)


@dataclass(frozen=True)
class Peer:
    """A template on PyPI.

    Args:
        package: There, and its command.
        options: Of the command, so that it asks nothing and makes a project `service`.
        install: The project's packages, in an environment of its own.
        seed: A database with so many rows, in `app.db` of a directory.
        start: The project with its data in a directory.
        kind: To tell two of a package apart.
        table: Its own, if it comes with one.
    """

    package: str
    options: tuple[str, ...]
    install: Callable[[Path, Path], None]
    seed: Callable[[Path, Path], None]
    start: Callable[[Path, Path], Server]
    kind: str = ""
    table: Table | None = None

    @property
    def name(self) -> str:
        return f"{self.package} {self.kind}".strip()


@dataclass(frozen=True)
class Side:
    """A service that is ready to be started."""

    name: str
    start: Callable[[], Server]
    data: Path
    table: Table | None


def bounded(python: Path, *command: str | Path, cwd: Path) -> None:
    """Run it with uv at hand, on this Python whatever it installs."""
    variables = {"PATH": sides.search_path(), "UV_PYTHON": str(python), "VIRTUAL_ENV": ""}
    sides.run("timeout", f"{MINUTES}m", *command, cwd=cwd, **variables)


def install_fastapi_template(project: Path, python: Path) -> None:
    """As its Dockerfile does it: its compose file serves with reload, for development."""
    bounded(python, "uv", "sync", "--locked", "--no-dev", "--compile-bytecode", cwd=project)


def seed_fastapi_template(project: Path, data: Path) -> None:
    variables = {"SERVICE_DB_FILE": str(data / "app.db")}
    sides.run(project / ".venv/bin/alembic", "upgrade", "head", cwd=project, **variables)
    with closing(sqlite3.connect(data / "app.db")) as connection, connection:
        names = ((f"note {number} of the benchmark",) for number in range(ROWS))
        connection.executemany("INSERT INTO dummy_model (name) VALUES (?)", names)


def start_fastapi_template(project: Path, data: Path) -> Server:
    """Its Dockerfile's command; an image has no .env, which turns reload on."""
    port = sides.free_port()
    variables = {
        "SERVICE_PORT": str(port),
        "SERVICE_RELOAD": "false",
        "SERVICE_DB_FILE": str(data / "app.db"),
    }
    command = [project / ".venv/bin/python", "-m", "service"]
    return Server("fastapi_template", command, port, data, project, variables, "/api/health")


def install_scaffold(project: Path, python: Path) -> None:
    backend = project / "backend"
    bounded(python, "uv", "venv", cwd=backend)
    options = ["--compile-bytecode", "--python", ".venv", "--requirements", "requirements.txt"]
    bounded(python, "uv", "pip", "install", *options, cwd=backend)
    shutil.copy2(backend / "env.example", backend / ".env")


def seed_scaffold(project: Path, data: Path) -> None:
    """It has no database."""


def start_scaffold(project: Path, data: Path) -> Server:
    """Its Procfile's command, for this machine only."""
    port, backend = sides.free_port(), project / "backend"
    command = procfile((backend / "Procfile").read_text(encoding="utf-8"), port)
    command[0] = str(backend / ".venv/bin" / command[0])
    return Server("claude-app-scaffold", command, port, data, backend, {}, "/")


def procfile(text: str, port: int) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith("web: "))
    line = line.removeprefix("web: ").replace("$PORT", str(port))
    return line.replace("0.0.0.0", "127.0.0.1").split()


def scaffold(kind: str) -> Peer:
    options = ("--name", "service", "--type", kind, "--model", "haiku", "--output", ".")
    package = "claude-app-scaffold"
    return Peer(package, options, install_scaffold, seed_scaffold, start_scaffold, kind)


FASTAPI_TEMPLATE = Peer(
    "fastapi_template",
    (
        *("--quiet", "--name", "service", "--api-type", "rest", "--db", "sqlite"),
        *("--orm", "sqlalchemy", "--ci", "none", "--migrations", "--dummy", "--routers"),
    ),
    install_fastapi_template,
    seed_fastapi_template,
    start_fastapi_template,
    table=Table(
        "dummy_model",
        "/api/dummy/?limit=20",
        ("PUT", "/api/dummy/", {"name": "written by the benchmark"}),
    ),
)
NOTES = Table("notes", "/notes?limit=20", ("POST", "/notes", {"text": "written by the benchmark"}))
PEERS = (FASTAPI_TEMPLATE, scaffold("chatbot"), scaffold("agent"))


def peers(effort: Effort) -> Result:
    """Two other templates from PyPI: start, memory, health, and a table's list and insert."""
    result = Result()
    # its Python is the others' too: UV_PYTHON decides, not an earlier run
    shutil.rmtree(sides.cache() / "beside-peers", ignore_errors=True)
    project = sides.project("beside-peers", routes=False)
    python = project / ".venv/bin/python"
    with sides.workspace() as directory:
        data = directory / "ours"
        sides.seed(project, data, ROWS)
        ours = Side(OURS, partial(sides.ours, project, data), data, NOTES)
        others = all_ready(result, python, directory)
        add_starts(result, effort, ours, others)
        add_memory(result, effort, ours, others)
        add_health(result, effort, ours, others)
        with_table = [side for side in others if side.table]
        if with_table:
            add_tables(result, effort, ours, with_table)
    result.notes.append(f"All sides: {output(python, '--version')}, one worker.")
    return result


def all_ready(result: Result, python: Path, directory: Path) -> list[Side]:
    """Those that can be measured; of the others a note says what failed."""
    found = []
    for peer in PEERS:
        try:
            found.append(ready(peer, python, directory / peer.name.replace(" ", "-")))
        except RuntimeError as error:
            result.notes.append(f"{peer.name}: {in_one_line(error)}")
    return found


def ready(peer: Peer, python: Path, data: Path) -> Side:
    """Made, installed, and seen to answer.

    Raises:
        RuntimeError: With the step that failed, and what it said.
    """
    home = sides.cache() / peer.name.replace(" ", "-")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    bounded(python, "uv", "venv", "tool", cwd=home)
    bounded(python, "uv", "pip", "install", "--python", "tool", peer.package, cwd=home)
    bounded(python, home / "tool/bin" / peer.package, *peer.options, cwd=home)
    project = home / "service"
    peer.install(project, python)
    data.mkdir()
    peer.seed(project, data)
    with peer.start(project, data) as server:
        server.wait()
    asked = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
    version = output(home / "tool/bin/python", "-c", asked)
    name = f"{peer.package} {version} {peer.kind}".strip()
    return Side(name, partial(peer.start, project, data), data, peer.table)


def output(*command: str | Path) -> str:
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return done.stdout.strip()


def in_one_line(error: RuntimeError) -> str:
    """What failed and its last error, or else the last thing it said; without the cache's path."""
    first, *rest = str(error).replace(f"{sides.cache()}/", "").splitlines()
    said = [line.strip() for line in rest if line.strip()]
    reasons = [line for line in said if "rror: " in line] or said
    return f"{first.rstrip(':')}: {reasons[-1]}" if reasons else first


def add_starts(result: Result, effort: Effort, ours: Side, others: list[Side]) -> None:
    def timed(side: Side) -> float:
        with side.start() as server:
            return server.wait()

    measures = [partial(timed, side) for side in (ours, *others)]
    mine, *theirs = interleave(2 * effort.pairs, *measures)
    for side, values in zip(others, theirs, strict=True):
        result.add("first healthy answer", "s", mine, values, side.name)


def add_memory(result: Result, effort: Effort, ours: Side, others: list[Side]) -> None:
    def rested(side: Side) -> float:
        with side.start() as server:
            server.wait()
            return rest(server)

    measures = [partial(rested, side) for side in (ours, *others)]
    mine, *theirs = interleave(max(2, effort.pairs // 2), *measures)
    for side, values in zip(others, theirs, strict=True):
        result.add("memory (PSS) at rest", "MB", mine, values, side.name)


def running(stack: ExitStack, side: Side) -> Server:
    server = stack.enter_context(side.start())
    server.wait()
    return server


def add_health(result: Result, effort: Effort, ours: Side, others: list[Side]) -> None:
    """Each one's own health route, against ours that proves nothing and ours that proves."""
    with ExitStack() as stack:
        server = running(stack, ours)
        loads = [pressing(server, path, effort.seconds) for path in LIVE_AND_PROVEN]
        for side in others:
            server = running(stack, side)
            loads.append(pressing(server, server.health, effort.seconds))
        live, proof, *theirs = interleave(effort.pairs, *loads)
    here = dict(zip(LIVE_AND_PROVEN, (live, proof), strict=True))
    for path, mine in here.items():
        result.errors += faults(f"{OURS} {path}", mine)
    for side, runs in zip(others, theirs, strict=True):
        result.notes += faults(f"{side.name}, health", runs)
        for path, mine in here.items():
            add_load(result, path, mine, runs, side.name)


def add_load(
    result: Result, what: str, mine: list[Pressed], theirs: list[Pressed], against: str
) -> None:
    result.add(f"{what}: requests a second", "1/s", rates(mine), rates(theirs), against)
    tails = [[one.load.p99 for one in runs] for runs in (mine, theirs)]
    result.add(f"{what}: 99 % answered within", "ms", *tails, against)
    result.add(f"{what}: CPU a request", "us", costs(mine), costs(theirs), against)


def add_tables(result: Result, effort: Effort, ours: Side, others: list[Side]) -> None:
    """80 % lists of 20 rows, 20 % inserts; then each one's health without its database."""
    without = []
    with ExitStack() as stack:
        servers = {side.name: running(stack, side) for side in (ours, *others)}
        loads = [tabling(servers[side.name], side, effort.seconds) for side in (ours, *others)]
        mine, *theirs = interleave(effort.pairs, *loads)
        for side in (ours, *others):
            (side.data / "app.db").unlink()
            server = servers[side.name]
            paths = LIVE_AND_PROVEN if side is ours else (server.health,)
            without += [f"{side.name} {path} {server.get(path).status}" for path in paths]
    here, lost = [one for one, _ in mine], [n for _, n in mine]
    result.errors += faults(f"{OURS} {NOTES.name}", here)
    if sum(lost):
        result.errors.append(f"{OURS}: {sum(lost):.0f} inserts lost")
    for side, runs in zip(others, theirs, strict=True):
        there, lost_there = [one for one, _ in runs], [n for _, n in runs]
        add_load(result, "list and insert", here, there, side.name)
        failed = [[float(one.load.refused + one.load.broken) for one in x] for x in (here, there)]
        result.add("list and insert: errors", "", *failed, side.name)
        result.add("list and insert: inserts lost", "", lost, lost_there, side.name)
    result.notes.append(f"Health with the database deleted: {', '.join(without)}.")


def tabling(server: Server, side: Side, seconds: int) -> Callable[[], tuple[Pressed, float]]:
    """The load, and how many of the inserts that were answered well the table does not have.

    What wrk no longer waited for at its end may be there as well: that can hide losses, never
    make one up.
    """
    assert side.table
    table = side.table
    measure = pressing(server, "/", seconds, *table.script)

    def counted() -> tuple[Pressed, float]:
        before = table.count(side.data)
        found = measure()
        time.sleep(0.5)  # what is under way still ends
        return found, max(0.0, found.load.inserted - (table.count(side.data) - before))

    return counted
