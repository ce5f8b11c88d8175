"""Every promise about streaming, kept by a service that runs as in production."""

import asyncio
import random
import sqlite3
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from support.crowd import Crowd, cpu_seconds, crowd, files_allowed, memory, open_files
from support.service import Service
from support.streams import (
    ANSWERS,
    Claude,
    Nginx,
    Person,
    answering,
    gated,
    pieces,
    stored_answers,
    wait_until,
    workers,
)

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

TEXTS = ["Hello", ", ", "wörld\r\n", "\N{LINE SEPARATOR}\N{GRINNING FACE}", "\n\n", "data: end"]


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Path:
    return installed(**ANSWERS)


@pytest.fixture(scope="module")
def model() -> Iterator[Claude]:
    with Claude() as model:
        yield model


@pytest.fixture
def claude(model: Claude) -> Claude:
    """The model's server, as if nobody had asked it anything."""
    for kept in (model.requests, model.headers, model.sent, model.departures):
        kept.clear()
    model.poll = 0.01
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def service(project: Path, data: Path, model: Claude) -> Iterator[Service]:
    """One for all tests that neither stop nor change it."""
    with answering(project, data, model.url) as service:
        yield service


@pytest.fixture(scope="module")
def nginx(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with Nginx(tmp_path_factory.mktemp("nginx"), service.url) as nginx:
        yield nginx


@pytest.fixture(params=["direct", "nginx, HTTP/1.0", "nginx, HTTP/1.1"])
def url(service: Service, nginx: Nginx, request: pytest.FixtureRequest) -> str:
    """The service itself, or a proxy that speaks this version of HTTP to it."""
    return service.url if request.param == "direct" else nginx.urls[request.param[-3:]]


def require_one_by_one(claude: Claude, person: Person) -> None:
    """Each piece arrives before the next one is there to push it along."""
    plan, gates = gated(*TEXTS)
    claude.plans = [plan]
    with person.reading() as events:
        arriving = pieces(events)
        for text, gate in zip(TEXTS, gates, strict=True):
            assert next(arriving) == text
            gate.set()
        assert not list(arriving)
    assert person.end == "done"
    assert person.stored() == ("".join(TEXTS), "complete")


def test_the_first_piece_takes_less_than_100_ms(
    service: Service, claude: Claude, record_property: Record
) -> None:
    claude.plans = [[0.05, "first"]]
    delays = []
    with Person(service.url) as person:
        for _ in range(30):
            person.last_id = ""
            with person.reading() as events:
                arriving = pieces(events)
                assert next(arriving) == "first"
                delays.append(1000 * (person.heard_at - claude.sent[-1]))
                assert not list(arriving)
    record_property("ms, median", f"{statistics.median(delays):.1f}")
    record_property("ms, worst of 30", f"{max(delays):.1f}")
    assert statistics.median(delays) < 100


def test_pieces_arrive_one_by_one(url: str, claude: Claude) -> None:
    with Person(url, **{"Accept-Encoding": "gzip"}) as person:
        require_one_by_one(claude, person)


PEOPLE = 5


before_and_after_the_first = pytest.mark.parametrize(
    "texts",
    [
        pytest.param([], id="before the first piece"),
        pytest.param(["one ", "two "], id="in the middle"),
    ],
)


@before_and_after_the_first
def test_a_client_that_leaves_stops_the_model(
    url: str, claude: Claude, texts: list[str], record_property: Record
) -> None:
    claude.plans = [[*texts, threading.Event()]]
    require_stop_on_leaving(url, claude, texts, record_property)


def require_stop_on_leaving(
    url: str, claude: Claude, texts: list[str], record_property: Record
) -> None:
    with ExitStack() as stack:
        people = [stack.enter_context(Person(url)) for _ in range(PEOPLE)]
        with ExitStack() as streams:
            for person in people:
                events = streams.enter_context(person.reading())
                while person.text != "".join(texts):
                    next(events)
            wait_until(lambda: len(claude.requests) == PEOPLE)
            assert not claude.departures
            left = time.monotonic()
        wait_until(lambda: len(claude.departures) == PEOPLE)
        delays = [departed - left for departed in claude.departures]
        record_property("seconds, median", f"{statistics.median(delays):.2f}")
        record_property(f"seconds, worst of {PEOPLE}", f"{max(delays):.2f}")
        assert statistics.median(delays) < 2
        for person in people:
            wait_until(lambda: person.stored()[1] != "streaming")  # noqa: B023
            assert person.stored() == ("".join(texts), "interrupted")


LONG_ANSWER = [f"{number} {random.Random(number).choice(TEXTS)}" for number in range(200)]


def test_cuts_lose_and_repeat_nothing(url: str, claude: Claude, record_property: Record) -> None:
    claude.plans = [[step for text in LONG_ANSWER for step in (text, 0.01)]]
    seed = random.randrange(10**6)
    print("seed", seed)
    choose = random.Random(seed)
    cuts = 0
    with Person(url) as person:
        while not person.end:
            person.read(choose.randrange(6), choose.choice(["POST", "GET"]) if cuts else "POST")
            cuts += 1
        assert person.end == "done"
        assert person.text == "".join(LONG_ANSWER)
        assert person.stored() == (person.text, "complete")
        # and once more, when all is over
        person.read()
        assert person.text == "".join(LONG_ANSWER)
    assert len(claude.requests) == 1
    record_property("connections", cuts)


def test_an_event_source_comes_back_in_time(
    service: Service, claude: Claude, record_property: Record
) -> None:
    """It waits as long as it was told before it connects anew."""
    plan, gates = gated(*TEXTS)
    claude.plans = [plan]
    with Person(service.url) as person:
        person.read(1)
        for gate in gates:
            time.sleep(person.retry)
            gate.set()
            person.read(1, "GET")
        record_property("seconds", person.retry)
        assert person.end == "done"
        assert person.text == "".join(TEXTS)
        assert person.stored() == (person.text, "complete")


def test_who_comes_back_waits_for_no_lock(service: Service, claude: Claude, data: Path) -> None:
    plan, (gate, last) = gated("one ", "two ")
    claude.plans = [plan]
    with Person(service.url) as person:
        person.read(1)
        with closing(sqlite3.connect(data / "app.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            gate.set()
            person.read(1)
            assert person.text == "one two "
        last.set()
        person.read()
        assert person.stored() == ("one two ", "complete")


MIDDLEWARE = """
    app.add_middleware(GZipMiddleware, minimum_size=0)

    @app.middleware("http")
    async def label(request, call_next):
        response = await call_next(request)
        response.headers["X-Label"] = "mine"
        return response

"""


@contextmanager
def middleware_added(project: Path) -> Iterator[None]:
    """The project with middleware around everything, as its owner would add it."""
    main = project / "app" / "main.py"
    before = main.read_text(encoding="utf-8")
    imported = before.replace(
        "from fastapi import FastAPI\n",
        "from fastapi import FastAPI\nfrom starlette.middleware.gzip import GZipMiddleware\n",
    )
    after = imported.replace("    return app\n", f"{MIDDLEWARE}    return app\n")
    assert "GZipMiddleware\n" in after
    assert MIDDLEWARE in after
    main.write_text(after, encoding="utf-8")
    try:
        yield
    finally:
        main.write_text(before, encoding="utf-8")


@pytest.fixture(scope="module")
def wrapped(
    project: Path, tmp_path_factory: pytest.TempPathFactory, model: Claude
) -> Iterator[Service]:
    """The service with that middleware."""
    with (
        middleware_added(project),
        answering(project, tmp_path_factory.mktemp("wrapped"), model.url) as service,
    ):
        yield service


def test_middleware_leaves_the_stream_alone(wrapped: Service, claude: Claude) -> None:
    with Person(wrapped.url, **{"Accept-Encoding": "gzip"}) as person:
        assert person.client.get("/threads").headers["Content-Encoding"] == "gzip"
        require_one_by_one(claude, person)
        assert person.response_headers["X-Label"] == "mine"
        assert "Content-Encoding" not in person.response_headers


@before_and_after_the_first
def test_a_client_that_leaves_stops_the_model_behind_middleware(
    wrapped: Service, claude: Claude, texts: list[str], record_property: Record
) -> None:
    claude.plans = [[*texts, threading.Event()]]
    require_stop_on_leaving(wrapped.url, claude, texts, record_property)


def test_a_stop_ends_the_stream_behind_middleware(wrapped: Service, claude: Claude) -> None:
    claude.plans = [["one ", threading.Event()]]
    with Person(wrapped.url) as person, person.reading() as events:
        arriving = pieces(events)
        assert next(arriving) == "one "
        wrapped.terminate()
        assert not list(arriving)
        assert person.end == "shutdown"
        assert wrapped.ended() == 0


STREAMS = 500

MAX_KB = 250
"""A stream with its connection to the model."""

MAX_CPU = 0.12
"""What keeping so many streams open, and their answers stored, may take of a processor."""


async def require_little(people: Crowd, pid: int, before: int, record_property: Record) -> None:
    """Whatever so many streams take while nothing comes."""
    busy = -cpu_seconds(pid)
    await asyncio.sleep(5)
    busy += cpu_seconds(pid)
    grown = memory(pid) - before
    record_property("MB before", before // 1024)
    record_property("KB per stream", grown // STREAMS)
    record_property("percent of a CPU while nothing comes", round(100 * busy / 5))
    record_property("open files", open_files(pid))
    assert grown < STREAMS * MAX_KB
    assert busy < 5 * MAX_CPU


def test_500_open_streams(
    project: Path, tmp_path: Path, claude: Claude, record_property: Record
) -> None:
    gate = threading.Event()

    async def watch(service: Service, pid: int) -> None:
        claude.plans = [["first", "last"]]
        async with crowd(service, 50) as people:
            await people.read_until("done")
        before = memory(pid)
        claude.plans, claude.poll = [["first", gate, "last"]], 0.5
        started = time.monotonic()
        async with crowd(service, STREAMS) as people:
            await people.read_until('{"text":"first"}')
            record_property("seconds to open", f"{time.monotonic() - started:.1f}")
            await require_little(people, pid, before, record_property)
            health = service.client.get("/health")
            assert health.status_code == 200
            record_property("ms until /health answers", int(1000 * health.elapsed.total_seconds()))
            started = time.monotonic()
            gate.set()
            await people.read_until('{"text":"last"}')
            await people.read_until('"status":"complete"')
            record_property("seconds until all have ended", f"{time.monotonic() - started:.1f}")

    data = tmp_path / "data"
    with (
        files_allowed(8 * STREAMS),
        # it is not the disk that is measured
        answering(project, data, claude.url, SQLITE_SYNCHRONOUS="NORMAL") as service,
    ):
        (pid,) = workers(service)
        files = open_files(pid)
        asyncio.run(watch(service, pid))
        wait_until(lambda: open_files(pid) < files + 20)
        record_property("open files after", f"{open_files(pid)}, before {files}")
        service.terminate()
        assert service.ended() == 0
    assert Counter(stored_answers(data).values()) == {("firstlast", "complete"): 50 + STREAMS}


@contextmanager
def slower_echo(project: Path) -> Iterator[None]:
    """The second word comes after the test."""
    module = project / "app" / "chassis" / "conversations" / "echo.py"
    before = module.read_text(encoding="utf-8")
    after = before.replace("PAUSE: Final = 0.05", "PAUSE: Final = 300.0")
    after = after.replace("LONGEST: Final = 10.0", "LONGEST: Final = 600.0")
    assert after.count("00.0\n") == 2
    module.write_text(after, encoding="utf-8")
    try:
        yield
    finally:
        module.write_text(before, encoding="utf-8")


def test_500_open_streams_of_echoes_end_with_the_service(
    installed: Callable[..., Path], tmp_path: Path, record_property: Record
) -> None:
    project = installed(features=["conversations"], ai_provider="echo")
    data = tmp_path / "data"

    async def watch(service: Service, pid: int) -> None:
        async with crowd(service, 50, "one") as people:
            await people.read_until('{"text":"one"}')
        await asyncio.sleep(2)
        before = memory(pid)
        async with crowd(service, STREAMS, "first last") as people:
            await people.read_until('{"text":"first "}')
            await require_little(people, pid, before, record_property)
            started = time.monotonic()
            service.terminate()
            await people.read_until("event: shutdown")
            record_property("seconds until all have ended", f"{time.monotonic() - started:.1f}")
        assert service.ended() == 0
        record_property("seconds until the service has", f"{time.monotonic() - started:.1f}")

    with (
        files_allowed(8 * STREAMS),
        slower_echo(project),
        Service(project, data, SQLITE_SYNCHRONOUS="NORMAL").wait_until_healthy() as service,
    ):
        (pid,) = workers(service)
        asyncio.run(watch(service, pid))
    assert Counter(stored_answers(data).values()) == {
        ("one", "interrupted"): 50,
        ("first ", "interrupted"): STREAMS,
    }
