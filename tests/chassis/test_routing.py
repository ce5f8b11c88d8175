"""A DatabaseRoute answers as the same route of FastAPI's own would, from the database's thread."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated

import anyio.from_thread
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Query, Request, Response
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import AfterValidator, BaseModel, ConfigDict
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.chassis import assembly
from app.chassis.database import Reader, Writer, get_reader, get_writer
from app.chassis.routing import DatabaseRoute, Router
from app.main import create_app
from app.settings import Settings

from .databases import make_database

KINDS = {"ours": DatabaseRoute, "FastAPI's": APIRoute}


class Thing(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    value: int


class Stored:
    """Reads itself only when asked, as a relationship does."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.secret = "of nobody's"

    @property
    def value(self) -> int:
        return counter(self.session)


def counter(session: Session) -> int:
    value: int = session.execute(text("SELECT value FROM counter")).scalar_one()
    return value


def increment(session: Session) -> None:
    session.execute(text("UPDATE counter SET value = value + 1"))


def make_router(kind: type[APIRoute]) -> APIRouter:
    router = APIRouter(prefix="/chassis", route_class=kind)

    @router.get("/thing", response_model=Thing)
    def thing(session: Reader) -> Stored:
        """A thing."""
        return Stored(session)

    @router.get("/things")
    def things(session: Reader, request: Request, times: int = 2) -> list[Thing]:
        assert request.url.path == "/chassis/things"
        return [Thing(value=counter(session))] * times

    @router.get("/odd")
    def odd(session: Reader) -> list[Annotated[int, AfterValidator(lambda n: n + 1)]]:
        return [counter(session)]

    @router.post("/things", status_code=201)
    def create(session: Writer, thing: Thing, tasks: BackgroundTasks, response: Response) -> Thing:
        increment(session)
        tasks.add_task(ran.append, thing.value)
        response.headers["X-Made"] = "yes"
        return thing

    @router.delete("/things", status_code=204)
    def delete(session: Writer) -> None:
        increment(session)

    @router.get("/plain")
    def plain(session: Reader) -> Response:
        return Response(str(counter(session)), status_code=202, media_type="text/plain")

    @router.get("/missing")
    def missing(session: Reader) -> Thing:
        raise HTTPException(404, f"none of {counter(session)}")

    @router.post("/wrong", response_model=Thing)
    def wrong(session: Writer) -> dict[str, str]:
        increment(session)
        return {"value": "no number"}

    def shared(session: Reader) -> int:
        return id(session)

    @router.get("/shared")
    def same(first: Annotated[int, Depends(shared)], session: Reader) -> bool:
        return first == id(session)

    @router.get("/coroutine")
    async def coroutine(session: Reader) -> bool:
        return isinstance(session, Session)

    @router.get("/sent")
    def sent(session: Reader, name: str) -> "Sequence[Thing]":
        return [Thing(value=len(name))]

    return router


ran: list[int] = []

REQUESTS = [
    ("GET", "/thing", None),
    ("GET", "/things", None),
    ("GET", "/things?times=3", None),
    ("GET", "/things?times=x", None),
    ("GET", "/odd", None),
    ("POST", "/things", {"value": 5}),
    ("POST", "/things", {"value": "x"}),
    ("DELETE", "/things", None),
    ("GET", "/plain", None),
    ("GET", "/missing", None),
    ("POST", "/wrong", None),
    ("GET", "/shared", None),
    ("GET", "/coroutine", None),
    ("GET", "/sent?name=abc", None),
    ("GET", "/thing", None),
]


@pytest.fixture
def settings_with_counter(settings: Settings) -> Settings:
    make_database(settings)
    database = assembly.engine.open(settings)
    with database.write() as session:
        session.execute(text("CREATE TABLE counter (value INTEGER)"))
        session.execute(text("INSERT INTO counter VALUES (0)"))
    database.dispose()
    return settings


def test_answers_as_fastapis_own(settings_with_counter: Settings) -> None:
    seen = {}
    for name, kind in KINDS.items():
        ran.clear()
        app = create_app(settings_with_counter)
        app.include_router(make_router(kind))
        with TestClient(app, raise_server_exceptions=False) as client:
            with app.state.database.write() as session:
                session.execute(text("UPDATE counter SET value = 0"))
            answers = [
                client.request(method, f"/chassis{path}", json=body)
                for method, path, body in REQUESTS
            ]
        told = [
            (answer.status_code, without_id(answer.text), answer.headers.get("X-Made"))
            for answer in answers
        ]
        seen[name] = (told, app.openapi(), list(ran))
    assert seen["ours"] == seen["FastAPI's"]
    told, _, background = seen["ours"]
    assert background == [5]
    statuses = [status for status, _, _ in told]
    assert statuses == [200, 200, 200, 422, 200, 201, 422, 204, 202, 404, 500, 200, 200, 200, 200]
    # a refused body and a wrong answer have written nothing
    assert [told[0][1], told[-1][1]] == ['{"value":0}', '{"value":2}']


def without_id(body: str) -> str:
    return body.partition(',"request_id"')[0]


def test_all_of_it_is_in_the_databases_thread(settings_with_counter: Settings) -> None:
    router = APIRouter(prefix="/chassis", route_class=DatabaseRoute)
    threads: list[str] = []

    def noted(value: int) -> int:
        threads.append(threading.current_thread().name)
        return value

    class Noted(BaseModel):
        value: Annotated[int, AfterValidator(noted)]

    @router.get("/read")
    def read(session: Reader) -> Noted:
        return Noted(value=noted(counter(session)))

    @router.post("/write", response_model=Noted)
    def write(session: Writer) -> dict[str, int]:
        increment(session)
        return {"value": noted(counter(session))}

    app = create_app(settings_with_counter)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/chassis/read").json() == {"value": 0}
        assert set(threads) == {"database-reader"}
        threads.clear()
        assert client.post("/chassis/write").json() == {"value": 1}
        assert set(threads) == {"database-writer"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_tests_can_override_the_session(
    settings_with_counter: Settings, kind: type[APIRoute]
) -> None:
    router = APIRouter(prefix="/chassis", route_class=kind)
    ended: list[str] = []

    @router.get("/read")
    def read(session: Reader) -> str:
        return str(session)

    @router.post("/write")
    def write(session: Writer) -> str:
        ended.append(f"route with {session}")
        return str(session)

    def writer(needed: Annotated[str, Query()]) -> Iterator[str]:
        yield needed
        ended.append("session")

    app = create_app(settings_with_counter)
    app.include_router(router)
    app.dependency_overrides |= {get_reader: lambda: "no database", get_writer: writer}
    with TestClient(app) as client:
        assert client.get("/chassis/read").json() == "no database"
        assert client.post("/chassis/write").status_code == 422
        assert not ended
        assert client.post("/chassis/write?needed=given").json() == "given"
        assert ended == ["route with given", "session"]


def test_a_router_has_routes_in_the_databases_thread() -> None:
    router = Router(prefix="/chassis")
    router.get("/read")(lambda: None)
    assert isinstance(router.routes[0], DatabaseRoute)


def test_a_route_may_ask_the_event_loop_for_something(settings_with_counter: Settings) -> None:
    router = Router(prefix="/chassis")

    async def ask(name: str) -> str:
        await asyncio.sleep(0)
        return name

    @router.get("/read")
    def read(session: Reader) -> str:
        return anyio.from_thread.run(ask, f"read {counter(session)}")

    @router.post("/write")
    def write(session: Writer) -> str:
        increment(session)
        return anyio.from_thread.run(ask, f"wrote {counter(session)}")

    app = create_app(settings_with_counter)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/chassis/read").json() == "read 0"
        assert client.post("/chassis/write").json() == "wrote 1"


def test_a_function_is_wrapped_once_however_often_its_router_is_included(
    settings_with_counter: Settings,
) -> None:
    inner, outer = Router(prefix="/inner"), Router(prefix="/outer")
    called: list[str] = []

    @inner.get("/read")
    def read(session: Reader) -> int:
        called.append(threading.current_thread().name)
        return counter(session)

    (route,) = inner.routes
    assert isinstance(route, DatabaseRoute)
    assert vars(route.endpoint)["__wrapped__"] is read
    outer.include_router(inner)
    app = create_app(settings_with_counter)
    app.include_router(inner)
    app.include_router(outer, prefix="/v1")
    with TestClient(app) as client:
        for path in ("/inner/read", "/v1/outer/inner/read"):
            assert client.get(path).json() == 0
    assert called == ["database-reader"] * 2
