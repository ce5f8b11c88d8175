"""What keeps a session longer than its route: one error at once, and no connection lost."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from support import ROOT
from support.service import Service, router_added

pytestmark = pytest.mark.long

ROUTES = """

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fastapi import APIRouter, BackgroundTasks, Request
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from sqlalchemy import ForeignKey, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from app.api import export
from app.chassis.database import Database, Reader, Writer
from app.chassis.routing import DatabaseRoute
from app.chassis.streaming import EventStream, ServerSentEvent
from app.models import Base, Note

router = APIRouter()
kept: list[Any] = []


class Remark(Base):
    __tablename__ = "remarks"
    id: Mapped[int] = mapped_column(primary_key=True)
    note_id: Mapped[int] = mapped_column(ForeignKey("notes.id"))
    note: Mapped[Note] = relationship()


def later(use: Callable[[], object]) -> StreamingResponse:
    def rows() -> Iterator[str]:
        yield str(use())

    return StreamingResponse(rows(), media_type="text/csv")


def first(session: Session) -> Remark:
    return session.get_one(Remark, 1)


def expired(session: Session) -> Callable[[], object]:
    note = session.get_one(Note, 1)
    session.expire(note)
    return lambda: note.text


def begun(result: Any) -> Callable[[], object]:
    next(iter(result))
    return lambda: list(result)


def unopened(session: Session) -> Callable[[], object]:
    remark = first(session)
    return lambda: remark.note.text


USES: dict[str, Callable[[Session], Callable[[], object]]] = {
    "execute": lambda s: lambda: s.execute(select(Note)).all(),
    "scalars": lambda s: lambda: s.scalars(select(Note)).all(),
    "get": lambda s: lambda: s.get(Note, 1),
    "query": lambda s: lambda: s.query(Note).all(),
    "a query made before": lambda s: s.query(Note).all,
    "flush": lambda s: s.flush,
    "commit": lambda s: s.commit,
    "begin": lambda s: s.begin,
    "nested": lambda s: s.begin_nested,
    "connection": lambda s: lambda: s.connection().execute(text("SELECT 1")).all(),
    "the connection taken before": lambda s: (
        lambda connection: lambda: connection.execute(text("SELECT 1")).all()
    )(s.connection()),
    "bind": lambda s: lambda: s.get_bind(),
    "add": lambda s: lambda: s.add(Note(text="x")),
    "with": lambda s: lambda: s.__enter__(),
    "a bound method": lambda s: (lambda scalars: lambda: scalars(select(Note)).all())(s.scalars),
    "a lazy relationship": unopened,
    "an expired attribute": expired,
    "a result": lambda s: s.scalars(select(Note)).all,
    "a result in parts": lambda s: begun(s.scalars(select(Note).execution_options(yield_per=2))),
    "rows": lambda s: begun(s.execute(text("SELECT id FROM notes"))),
}
HARMLESS: dict[str, Callable[[Session], Callable[[], object]]] = {
    "close": lambda s: s.close,
    "rollback": lambda s: lambda: s.rollback(),
    "a loaded attribute": lambda s: (lambda note: lambda: note.text)(s.get_one(Note, 1)),
    "what has been read": lambda s: (lambda notes: lambda: len(notes))(
        s.scalars(select(Note)).all()
    ),
}

router.include_router(export.router)
for prefix, kind in {"ours": DatabaseRoute, "fastapis": APIRoute}.items():
    routes = APIRouter(prefix=f"/{prefix}", route_class=kind)

    @routes.get("/read/{use}")
    def read(session: Reader, use: str) -> StreamingResponse:
        kept.append(session)
        session.get(Note, 1)
        return later((USES | HARMLESS)[use](session))

    @routes.get("/write/{use}")
    def write(session: Writer, use: str) -> StreamingResponse:
        kept.append(session)
        session.add(Note(text="written"))
        session.flush()
        return later((USES | HARMLESS)[use](session))

    @routes.get("/rows")
    def rows(session: Reader) -> Iterator[dict[str, str]]:
        for note in session.scalars(select(Note)):
            yield {"text": note.text}

    @routes.get("/events")
    def events(session: Reader) -> EventStream:
        async def made() -> AsyncIterator[ServerSentEvent]:
            for note in session.scalars(select(Note)):
                yield ServerSentEvent(data=note.text)

        return EventStream(made())

    @routes.get("/slow")
    def slow(request: Request) -> StreamingResponse:
        database: Database = request.app.state.database

        def rows() -> Iterator[str]:
            with database.read() as session:
                for note in session.scalars(select(Note).execution_options(yield_per=10)):
                    yield note.text * 10

        return StreamingResponse(rows())

    @routes.post("/task")
    def task(session: Writer, tasks: BackgroundTasks) -> None:
        def add() -> None:
            session.add(Note(text="too late"))
            session.commit()

        tasks.add_task(add)

    @routes.post("/thread/{name}")
    def thread(name: str, read: Reader) -> None:
        errors = outcomes.setdefault(name, [])

        def work() -> None:
            kept.append(read)
            try:
                while True:
                    read.scalars(select(Note).limit(1)).all()
            except Exception as error:
                errors.append(type(error).__name__)

        threading.Thread(target=work).start()
        time.sleep(0.01)

    router.include_router(routes)

outcomes: dict[str, list[str]] = {}


@router.get("/outcomes")
def told() -> dict[str, list[str]]:
    return outcomes


@router.post("/tables")
def tables(session: Writer) -> None:
    Remark.metadata.create_all(session.connection())
    session.add_all([Note(text="x" * 2000) for _ in range(1500)])
    session.flush()
    session.add(Remark(note_id=1))
"""

RIGHT_WAY = "`with database.read() as session` inside the generator"
KINDS = ["ours", "fastapis"]


def example() -> str:
    """The export of docs/building.md, as it stands there."""
    page = (ROOT / "docs" / "building.md").read_text(encoding="utf-8")
    (found,) = (block for block in page.split("```python\n")[1:] if "/export.csv" in block)
    return found.partition("```")[0]


@pytest.fixture(scope="module")
def service(
    installed: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    project = installed()
    data = tmp_path_factory.mktemp("sessions") / "data"
    module = project / "app" / "api" / "export.py"
    module.write_text(example(), encoding="utf-8")
    with (
        router_added(project, "keeping", ROUTES),
        Service(project, data, PYTHONFAULTHANDLER="1").wait_until_healthy() as service,
    ):
        assert service.client.post("/tables").status_code == 200
        yield service
    module.unlink()


def names(service: Service, which: str) -> list[str]:
    listed = re.search(rf"^{which}: dict.*?^\}}$", ROUTES, re.DOTALL | re.MULTILINE)
    assert listed
    return re.findall(r'^    "([\w ]+)":', listed[0], re.MULTILINE)


def tells(service: Service, since: int) -> str:
    """The log's text after so many characters, when it names the right way or long after."""
    deadline = time.monotonic() + 5
    while RIGHT_WAY not in service.output()[since:] and time.monotonic() < deadline:
        time.sleep(0.01)
    return service.output()[since:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_session_refuses_what_comes_after_its_route(
    service: Service, kind: str, mode: str
) -> None:
    for use in names(service, "USES"):
        since = len(service.output())
        answer = service.client.get(f"/{kind}/{mode}/{use}")
        assert answer.status_code == 500, use
        assert answer.json()["request_id"]
        assert RIGHT_WAY in tells(service, since), use
    for use in names(service, "HARMLESS"):
        assert service.client.get(f"/{kind}/{mode}/{use}").status_code == 200, use


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_does_under_load(service: Service, kind: str) -> None:
    """Writers that wait share a transaction, and its connection outlives their sessions."""

    def ask(use: str) -> int:
        return httpx.get(f"{service.url}/{kind}/write/{use}", timeout=60).status_code

    uses = [use for use in names(service, "USES") if use != "the connection taken before"]
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, uses * 2)) == {500}
    assert service.client.get("/notes").status_code == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", ["scalars", "a result in parts"])
def test_no_connection_is_lost(service: Service, kind: str, use: str) -> None:
    began = time.monotonic()
    for _ in range(60):
        assert service.client.get(f"/{kind}/read/{use}").status_code == 500
    # each of those that waited for a connection took 5 s
    assert time.monotonic() - began < 30
    leave(service, f"/{kind}/read/{use}")
    assert service.client.get("/notes").status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_that_is_kept_holds_no_state(service: Service, kind: str) -> None:
    """An open cursor keeps its connection at the state of its first row."""
    for _ in range(8):
        service.client.get(f"/{kind}/read/a result in parts")
        service.client.get(f"/{kind}/read/rows")
    for _ in range(8):
        made = service.client.post("/notes", json={"text": "new"}).json()
        assert service.client.get(f"/notes/{made['id']}").status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_generators_and_events(service: Service, kind: str) -> None:
    since = len(service.output())
    assert service.client.get(f"/{kind}/rows").status_code == 500
    assert RIGHT_WAY in tells(service, since)
    since = len(service.output())
    assert "event: error" in service.client.get(f"/{kind}/events").text
    assert RIGHT_WAY in tells(service, since)


@pytest.mark.parametrize("kind", KINDS)
def test_a_background_task(service: Service, kind: str) -> None:
    since = len(service.output())
    with suppress(httpx.TransportError):
        service.client.post(f"/{kind}/task")
    assert RIGHT_WAY in tells(service, since)
    assert "too late" not in httpx.get(f"{service.url}/notes?after=1490").text


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_read_while_it_ends(service: Service, kind: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = [f"{service.url}/{kind}/thread/{kind}" for _ in range(20)]
        assert {httpx.post(path, timeout=60).status_code for path in paths} == {200}
        list(pool.map(lambda path: httpx.post(path, timeout=60), paths))
    deadline = time.monotonic() + 20
    while len(outcomes := service.client.get("/outcomes").json()[kind]) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "SessionEndedError" in outcomes
    began = time.monotonic()
    for _ in range(20):
        assert service.client.get("/notes").status_code == 200
    assert time.monotonic() - began < 10


def test_the_export_of_the_docs(service: Service) -> None:
    notes = len(service.notes())
    for _ in range(3):
        lines = service.client.get("/export.csv").text.splitlines()
        assert len(lines) == notes >= 1500
    leave(service, "/export.csv", 40)
    assert service.client.get("/notes").status_code == 200
    assert service.client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("kind", KINDS)
def test_downloads_that_stand_still_take_nothing_from_routes(service: Service, kind: str) -> None:
    """Each of them keeps a session of its own open, and its client reads nothing."""
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(asking(service, f"/{kind}/slow"))
        deadline = time.monotonic() + 20
        while service.client.get("/health").json()["checks"]["readers"]["status"] == "ok":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for _ in range(20):
            assert service.client.get("/notes").status_code == 200
    deadline = time.monotonic() + 20
    while service.client.get("/health").json()["status"] != "ok":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "closed database" not in service.output()


def asking(service: Service, path: str) -> socket.socket:
    """A client that asks and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", service.port))
    target = path.replace(" ", "%20")
    client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


def leave(service: Service, path: str, clients: int = 14) -> None:
    """Ask as clients who read nothing and go."""
    with ExitStack() as stack:
        for _ in range(clients):
            stack.enter_context(asking(service, path))
        time.sleep(1)
