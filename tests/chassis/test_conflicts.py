"""What a request conflicts with is a 409, in both kinds of route, alone and in company."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import anyio
import anyio.from_thread
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.chassis.database import Reader, Writer
from app.chassis.routing import DatabaseRoute
from app.chassis.sqlite.driver import open_database
from app.main import create_app
from app.settings import Settings

from .databases import make_database

TABLES = """
CREATE TABLE rooms (id INTEGER PRIMARY KEY, code TEXT NOT NULL CHECK (code <> ''), day INTEGER);
CREATE UNIQUE INDEX one_a_day ON rooms (code, day);
CREATE UNIQUE INDEX any_case ON rooms (lower(code)) WHERE day IS NULL;
CREATE TABLE guests (room_id INTEGER REFERENCES rooms ON DELETE RESTRICT);
CREATE TABLE plain (room_id INTEGER REFERENCES rooms);
CREATE TABLE later (room_id INTEGER REFERENCES rooms DEFERRABLE INITIALLY DEFERRED);
INSERT INTO rooms VALUES (1, 'a', 1), (2, 'b', NULL), (3, 'c', 3);
INSERT INTO guests VALUES (1);
INSERT INTO plain VALUES (3)
"""

CASES = {
    "INSERT INTO rooms (code, day) VALUES ('a', 1)": (409, ["code", "day"]),
    "UPDATE rooms SET code = 'a', day = 1 WHERE id = 2": (409, ["code", "day"]),
    "INSERT INTO rooms (code) VALUES ('B')": (409, []),
    "INSERT INTO rooms VALUES (1, 'x', 1)": (409, ["id"]),
    "INSERT INTO guests VALUES (9)": (409, []),
    "DELETE FROM rooms WHERE id = 1": (409, []),
    "DELETE FROM rooms WHERE id = 3": (409, []),
    "INSERT INTO later VALUES (9)": (409, []),
    "INSERT INTO rooms (day) VALUES (1)": (500, None),
    "INSERT INTO rooms (code) VALUES ('')": (500, None),
}

FINE = "INSERT INTO later VALUES (2)"


@pytest.fixture(params=["ours", "FastAPI's"])
def app(request: pytest.FixtureRequest, settings: Settings) -> FastAPI:
    make_database(settings.database_path)
    kind = DatabaseRoute if request.param == "ours" else APIRoute
    router = APIRouter(prefix="/chassis", route_class=kind)

    @router.post("/run")
    def run(statement: str, session: Writer) -> None:
        session.execute(text(statement))

    @router.get("/outside")
    def outside(session: Reader) -> list[int]:
        async def double(value: int) -> int:
            await anyio.sleep(0.001)
            return 2 * value

        return [anyio.from_thread.run(double, 4), anyio.from_thread.run_sync(abs, -3)]

    app = create_app(settings)
    app.include_router(router)
    with app.state.database.write() as session:
        for statement in TABLES.split(";"):
            session.execute(text(statement))
    return app


def test_a_conflict_is_told(app: FastAPI) -> None:
    with TestClient(app, raise_server_exceptions=False) as client:
        for statement, (status, fields) in CASES.items():
            answer = client.post("/chassis/run", params={"statement": statement})
            assert (answer.status_code, answer.json().get("fields")) == (status, fields), statement
            assert "constraint" not in answer.text


def test_it_is_nobody_elses(app: FastAPI) -> None:
    def post(statement: str) -> tuple[str, int]:
        return statement, client.post("/chassis/run", params={"statement": statement}).status_code

    fine = [f"{FINE}{' ' * number}" for number in range(20)]
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(16) as pool:
        mixed = [one for pair in zip(fine, list(CASES) * 2, strict=True) for one in pair]
        for statement, status in pool.map(post, mixed):
            assert status == (200 if statement in fine else CASES[statement][0]), statement


def test_the_event_loop_can_be_called_from_a_route(app: FastAPI) -> None:
    with TestClient(app) as client:
        assert client.get("/chassis/outside").json() == [8, 3]


def test_a_mounted_application_has_the_database_and_the_answers(settings: Settings) -> None:
    make_database(settings.database_path)
    app, mounted, inner = create_app(settings), FastAPI(), FastAPI()
    with closing(open_database(settings.database_path)) as connection:
        connection.executescript(TABLES)

    def insert(session: Writer, room: int) -> None:
        session.execute(text("INSERT INTO guests VALUES (:room)"), {"room": room})

    def count(session: Reader) -> int:
        return int(session.execute(text("SELECT count(*) FROM guests")).scalar_one())

    for one, kind in ((mounted, APIRoute), (inner, DatabaseRoute)):
        router = APIRouter(route_class=kind)
        router.add_api_route("/guests", insert, methods=["POST"])
        router.add_api_route("/guests", count)
        one.include_router(router)
    mounted.mount("/inner", inner)
    app.mount("/mounted", mounted)

    with TestClient(app) as client:
        for path in ("/mounted/guests", "/mounted/inner/guests"):
            refused = client.post(path, params={"room": 9})
            assert refused.status_code == 409
            assert refused.json()["request_id"] == refused.headers["X-Request-ID"]
            assert client.post(path, params={"room": 2}).status_code == 200
            assert client.put(path).headers["Allow"] == "GET, POST"
            # the value, which may be a password, is not in the answer
            assert "hunter2" not in client.post(path, params={"room": "hunter2"}).text
        assert client.get("/mounted/guests").json() == 3
