"""Several replicas on one PostgreSQL server under load: nothing is lost, missed or told twice."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import httpx2 as httpx
import pytest

from support.edge import Edge, edge, pooler
from support.postgres import Server
from support.service import DEADLINE, Service, free_port, router_added
from support.traffic import COUNTERS, MIX, Load, following

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

REPLICAS = 2
WORKERS = 2
SECONDS = 60.0
SHORT = 10.0

SKELETON = """
import os
from typing import Annotated

from fastapi import Depends, FastAPI, Response
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

engine = create_engine(os.environ["DATABASE_URL"].replace("://", "+psycopg://"), pool_size=8)


def get_session():
    with Session(engine) as session:
        yield session
        session.commit()


Writer = Annotated[Session, Depends(get_session, scope="function")]
app = FastAPI()


class Note(BaseModel):
    text: str


@app.get("/health")
def health():
    return "ok"


@app.put("/counter")
def create(session: Writer):
    session.execute(text("CREATE TABLE counter (value INTEGER)"))
    session.execute(text("INSERT INTO counter VALUES (0)"))
    session.execute(text("CREATE TABLE notes (id BIGSERIAL PRIMARY KEY, text VARCHAR(2000))"))


@app.post("/counter")
def increment(session: Writer) -> int:
    value = session.execute(text("SELECT value FROM counter")).scalar_one()
    session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})
    return value + 1


@app.get("/counter")
def read(session: Writer) -> int:
    return session.execute(text("SELECT value FROM counter")).scalar_one()


@app.post("/notes", status_code=201)
def add(note: Note, session: Writer):
    session.execute(text("INSERT INTO notes (text) VALUES (:text)"), {"text": note.text})


@app.get("/notes")
def notes(session: Writer, limit: int):
    found = session.execute(text("SELECT * FROM notes ORDER BY id LIMIT :limit"), {"limit": limit})
    return [row._asdict() for row in found]
"""
"""What people write: one session a request, at the database's default isolation."""

SLOW = f"""{COUNTERS}

import random
import time

from fastapi import HTTPException

from app.models import Note


@router.post("/slow/{{kind}}", status_code=201)
def add(kind: str, session: Writer) -> int:
    if kind == "contended":
        value = session.execute(text("SELECT value FROM counter")).scalar_one()
    note = Note(text=kind)
    session.add(note)
    session.flush()
    time.sleep(random.random() ** 3)
    if kind == "contended":
        session.execute(text("UPDATE counter SET value = :value"), {{"value": value + 1}})
    if kind == "undone":
        raise HTTPException(409, "not this one")
    return note.id
"""
"""Transactions that take an id, and commit up to a second later, in any order or not at all."""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed(database="postgresql")
    with router_added(project, "counters", SLOW):
        yield project


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def empty(server: Server) -> Server:
    server.execute(
        "DROP OWNED BY app; CREATE SCHEMA IF NOT EXISTS public; GRANT ALL ON SCHEMA public TO app"
    )
    return server


@contextmanager
def replicas(
    project: Path, data: Path, command: Sequence[str] | None = None, **variables: str
) -> Iterator[tuple[Edge, list[Service]]]:
    """So many of them behind an edge, which all take requests."""
    with ExitStack() as stack:
        services = []
        for number in range(REPLICAS):
            port = free_port()
            form = {} if command is None else {"command": [*command, f"--port={port}"]}
            services.append(
                stack.enter_context(
                    Service(
                        project,
                        data / str(number),
                        port=port,
                        **form,
                        WORKERS=str(WORKERS),
                        LOG_LEVEL="WARNING",
                        **variables,
                    )
                )
            )
        for service in services:
            service.wait_until_healthy()
        front = stack.enter_context(edge(*(service.port for service in services)))
        yield front, services


def count(server: Server, table: str) -> int:
    return int(server.execute(f"SELECT count(*) FROM {table}")[0][0])


def connections(server: Server) -> int:
    return count(server, "pg_stat_activity WHERE usename = 'app'")


def counter(server: Server) -> int:
    return int(server.execute("SELECT value FROM counter")[0][0])


def require_nothing_lost(
    load: Load, server: Server, services: list[Service], record_property: Record
) -> None:
    requests = sum(map(len, load.latencies.values()))
    record_property("load", load.figures())
    record_property("answers a worker", sorted(load.workers.values()))
    record_property("503 with Retry-After", f"{load.busy} of {requests + load.busy}")
    record_property("updates lost", load.done("POST /counter") - counter(server))
    assert not load.refused
    assert not load.cut
    assert counter(server) == load.done("POST /counter") > 0
    assert count(server, "notes") == load.done("POST /notes") > 0
    assert load.stale_reads == 0
    assert len(load.workers) == REPLICAS * WORKERS
    for service in services:
        service.terminate()
    for service in services:
        assert service.ended() == 0, service.output()
        assert "Traceback" not in service.output()


def test_no_update_is_lost_on_two_replicas(
    project: Path, empty: Server, tmp_path: Path, record_property: Record
) -> None:
    with replicas(project, tmp_path, DATABASE_URL=empty.url) as (front, services):
        assert services[0].client.put("/counter").status_code == 200
        load = Load(front.port, MIX, SECONDS).run()
        require_nothing_lost(load, empty, services, record_property)


def test_the_same_load_shows_the_losses_of_others(
    project: Path, empty: Server, tmp_path: Path, record_property: Record
) -> None:
    """The usual skeleton beside it, so that this load is known to find what is lost."""
    (tmp_path / "skeleton.py").write_text(SKELETON)
    command = [
        "python",
        "-m",
        "uvicorn",
        f"--app-dir={tmp_path}",
        f"--workers={WORKERS}",
        "--no-access-log",
        "skeleton:app",
    ]
    with replicas(project, tmp_path, command, DATABASE_URL=empty.url) as (front, services):
        assert services[0].client.put("/counter").status_code == 200
        load = Load(front.port, MIX, SHORT).run()
        told = load.done("POST /counter")
        record_property("load", load.figures())
        record_property("updates lost", f"{told - counter(empty)} of {told}")
        assert counter(empty) < told


def test_no_update_is_lost_behind_pgbouncer(
    project: Path, empty: Server, tmp_path: Path, record_property: Record
) -> None:
    """In transaction mode, with fewer connections to the server than processes have to it."""
    size = 6
    with pooler(empty, size) as url:
        addresses = {"DATABASE_URL": url, "DATABASE_UNPOOLED_URL": empty.url}
        with replicas(project, tmp_path, **addresses) as (front, services):
            assert services[0].client.put("/counter").status_code == 200
            load = Load(front.port, MIX, SHORT)
            with load.running():
                seen = []
                while time.monotonic() < load._until:
                    seen.append(connections(empty))
                    time.sleep(0.2)
            record_property("connections to the server", max(seen))
            assert 0 < max(seen) <= size
            require_nothing_lost(load, empty, services, record_property)


@pytest.mark.parametrize("command", [["python", "-m", "app"], ["python", "-m", "app", "migrate"]])
def test_a_pooler_that_no_setting_tells_of_is_refused(
    project: Path, empty: Server, tmp_path: Path, command: list[str]
) -> None:
    """It would lend the lock of migrations to several, and lose prepared statements."""
    with (
        pooler(empty, 2) as url,
        Service(project, tmp_path / "data", command, DATABASE_URL=url) as service,
    ):
        assert service.ended() != 0
        (line,) = service.output().splitlines()
        assert "is a pooler" in line
        assert "Set DATABASE_UNPOOLED_URL" in line
    assert count(empty, "pg_tables WHERE schemaname = 'public'") == 0


STREAMS = 6
WRITING = 12
WRITING_SECONDS = 12.0
KINDS = ["free", "free", "contended", "undone"]


def test_a_stream_misses_nothing_of_several_writers(
    project: Path, empty: Server, tmp_path: Path, record_property: Record
) -> None:
    """Whose transactions end in another order than they have begun, in two replicas."""
    with replicas(project, tmp_path, DATABASE_URL=empty.url) as (front, services):
        assert services[0].client.put("/counter").status_code == 200
        kept: list[int] = []
        busy: Counter[int] = Counter()
        until = time.monotonic() + WRITING_SECONDS
        seen = threading.Lock()

        def write(seed: int) -> None:
            choose = random.Random(seed)
            with httpx.Client(base_url=front.url, timeout=DEADLINE) as client:
                while time.monotonic() < until:
                    kind = choose.choice(KINDS)
                    answer = client.post(f"/counter/slow/{kind}")
                    with seen:
                        if answer.status_code == 201:
                            kept.append(answer.json())
                        else:
                            assert answer.status_code in {409, 503}, answer.text
                            busy[answer.status_code] += 1

        with (
            following(front.url, STREAMS // 2) as staying,
            following(front.url, STREAMS // 2, patience=0.3) as coming,
            ThreadPoolExecutor(WRITING) as pool,
        ):
            list(pool.map(write, range(WRITING)))
        backwards = sum(after < before for before, after in pairwise(kept))
        record_property("notes", f"{len(kept)}, {backwards} of them after one with a larger id")
        record_property("not written", dict(busy))
        ends = sum((follower.ends for follower in [*staying, *coming]), Counter())
        record_property("ends of streams", dict(ends))
        assert backwards > len(kept) / 10
        assert busy[409] > 0
        for follower in [*staying, *coming]:
            assert follower.ids == sorted(set(follower.ids))
            assert set(kept) <= set(follower.ids)
        assert ends.keys() == {"left"}
