"""What a database promises on either engine: nothing lost, and nothing half done."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import pytest
from fastapi import Depends, WebSocket
from fastapi.testclient import TestClient
from sqlalchemy import delete, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.testclient import WebSocketDenialResponse

from app.chassis import assembly
from app.chassis.database import Database, Reader, Writer, get_database
from app.chassis.routing import Router
from app.chassis.testing import outside
from app.main import create_app
from app.settings import Settings

from .databases import make_database

ROUNDS = 15
THREADS = 8


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    make_database(settings)
    made = assembly.engine.open(settings)
    with made.write() as session:
        session.execute(text("CREATE TABLE counter (value INTEGER)"))
        session.execute(text("INSERT INTO counter VALUES (0)"))
    yield made
    made.dispose()


def value_of(session: Session) -> int:
    return int(session.execute(text("SELECT value FROM counter")).scalar_one())


def increment(session: Session) -> int:
    """Read, modify, write: what loses updates under weaker transactions."""
    value = value_of(session)
    session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})
    return value


def increment_often(settings: Settings) -> None:
    async def increment_all() -> None:
        await asyncio.gather(*(opened.run_writing(increment) for _ in range(ROUNDS * THREADS)))

    opened = assembly.engine.open(settings)
    asyncio.run(increment_all())
    opened.dispose()


def make_client(settings: Settings) -> TestClient:
    app, router = create_app(settings), Router()

    @router.post("/increment")
    def increment_route(session: Writer) -> int:
        return increment(session)

    @router.post("/fail")
    def fail(session: Writer) -> None:
        session.execute(text("UPDATE counter SET value = 1000"))
        raise RuntimeError("after the write")

    @router.get("/slow")
    def slow(session: Reader) -> int:
        value = value_of(session)
        time.sleep(0.02)
        return value

    @router.get("/counter")
    def counter(session: Reader) -> int:
        return value_of(session)

    app.include_router(router)
    return TestClient(app, raise_server_exceptions=False)


def test_a_reader_cannot_write(database: Database) -> None:
    with database.read() as session, pytest.raises(DBAPIError, match=r"(?i)read-?only"):
        session.execute(text("UPDATE counter SET value = 1"))


def test_a_reader_sees_one_state(database: Database) -> None:
    with database.read() as session:
        before = value_of(session)
        with database.write() as writing:
            increment(writing)
        assert value_of(session) == before


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_no_update_is_lost(database: Database, settings: Settings, processes: int) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=increment_often, args=(settings,)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0] * processes
    assert outside(settings, value_of) == processes * ROUNDS * THREADS


@pytest.mark.parametrize("call", ["GET /slow", "POST /increment"])
def test_more_clients_than_threads_never_block_each_other(
    settings: Settings, database: Database, call: str
) -> None:
    # routes that wait in threads, of which there are 40, would keep them from those that
    # need one to finish
    with make_client(settings) as client, ThreadPoolExecutor(64) as pool:
        answers = pool.map(lambda _: client.request(*call.split()).status_code, range(128))
        assert list(answers) == [200] * 128
        assert client.get("/counter").json() == (128 if "POST" in call else 0)


def test_a_websocket_is_told_to_open_sessions_where_it_reads(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings)

    @app.websocket("/count")
    async def count(
        websocket: WebSocket, database: Annotated[Database, Depends(get_database)]
    ) -> None:
        found = await database.run_reading(value_of)
        await websocket.accept()
        await websocket.send_json(found)

    @app.websocket("/keep")
    async def keep(websocket: WebSocket, _: Reader) -> None:
        await websocket.accept()

    with TestClient(app) as client:
        with client.websocket_connect("/count") as websocket:
            assert websocket.receive_json() == 0
        with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/keep"):
            pass
    assert "await database.run_reading(function)" in capsys.readouterr().out


def test_a_failed_route_leaves_nothing_behind(settings: Settings, database: Database) -> None:
    with make_client(settings) as client:
        assert client.post("/fail").status_code == 500
        assert client.get("/counter").json() == 0
        assert client.post("/increment").status_code == 200


def test_an_answer_comes_after_the_commit(settings: Settings, database: Database) -> None:
    with make_client(settings) as client:
        for expected in range(1, 20):
            client.post("/increment")
            assert outside(settings, value_of) == expected


def test_a_writer_may_commit_in_between(database: Database) -> None:
    def twice(session: Session) -> None:
        increment(session)
        session.commit()
        session.execute(text("UPDATE counter SET value = 1000"))
        session.rollback()
        increment(session)

    asyncio.run(database.run_writing(twice))
    with database.read() as session:
        assert value_of(session) == 2


def test_the_newest_id_is_settled_when_nobody_writes(database: Database) -> None:
    with database.write() as session:
        Thing.metadata.create_all(session.connection())
    assert database.settled(Thing.id) == 0

    with database.write() as session:
        session.add_all([Thing(), Thing()])
    assert database.settled(Thing.id) == 2

    with database.write() as session:
        session.execute(delete(Thing))
    assert database.settled(Thing.id) == 0
