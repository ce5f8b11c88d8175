"""Every promise about streaming, kept by a service that runs as in production."""

import asyncio
import os
import random
import resource
import signal
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import httpx2 as httpx
import pytest

from service import Service
from streams import (
    ANSWERS,
    Claude,
    Nginx,
    Person,
    answering,
    gated,
    pieces,
    stored_answers,
    wait_until,
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
def service(
    project: Path, tmp_path_factory: pytest.TempPathFactory, model: Claude
) -> Iterator[Service]:
    """One for all tests that neither stop nor change it."""
    with answering(project, tmp_path_factory.mktemp("data"), model.url) as service:
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


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param([], id="before the first piece"),
        pytest.param(["one ", "two "], id="in the middle"),
    ],
)
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
            person.read(choose.randrange(6))
            cuts += 1
        assert person.end == "done"
        assert person.text == "".join(LONG_ANSWER)
        assert person.stored() == (person.text, "complete")
        # and once more, when all is over
        person.read()
        assert person.text == "".join(LONG_ANSWER)
    assert len(claude.requests) == 1
    record_property("connections", cuts)


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


@pytest.mark.parametrize("texts", [[], ["one ", "two "]], ids=["before the first piece", "in the middle"])
def test_a_client_that_leaves_stops_the_model_behind_middleware(
    wrapped: Service, claude: Claude, texts: list[str], record_property: Record
) -> None:
    claude.plans = [[*texts, threading.Event()]]
    require_stop_on_leaving(wrapped.url, claude, texts, record_property)


STREAMS = 500

MAX_KB = 250
"""A stream with its connection to the model."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as a container has; the service inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8 * STREAMS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """So many streams of one client, each in a thread of its own, and what has come in them."""

    def __init__(self, url: str, number: int, text: str = "Hi") -> None:
        self.number = number
        self.text = text
        self.client = httpx.AsyncClient(
            base_url=url, limits=httpx.Limits(), timeout=60, trust_env=False, verify=False
        )
        self.streams: list[tuple[httpx.Response, AsyncIterator[bytes]]] = []
        self._few = asyncio.Semaphore(10)
        self._stack = AsyncExitStack()

    async def _open(self) -> None:
        async with self._few:
            thread = (await self.client.post("/threads")).json()["id"]
            path = f"/threads/{thread}/chat"
            request = self.client.build_request("POST", path, json={"text": self.text})
            response = await self.client.send(request, stream=True)
            self._stack.push_async_callback(response.aclose)
            assert response.status_code == 200, await response.aread()
            self.streams.append((response, response.aiter_bytes()))

    async def wait_for(self, text: str) -> None:
        """Wait until each has received a chunk that ends so."""

        async def hear(chunks: AsyncIterator[bytes]) -> None:
            received = b""
            async for chunk in chunks:
                received += chunk
                if text.encode() in received:
                    return
            raise AssertionError(f"the stream ended without {text}: {received[-200:]!r}")

        await asyncio.gather(*(hear(chunks) for _, chunks in self.streams))

    async def __aenter__(self) -> "Crowd":
        await self._stack.enter_async_context(self.client)
        await asyncio.gather(*(self._open() for _ in range(self.number)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


def worker(service: Service) -> int:
    """The only process that the service's first one has started."""
    pid = service.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def memory(pid: int) -> int:
    """Proportional set size in KB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_500_open_streams(
    project: Path, tmp_path: Path, claude: Claude, many_files: None, record_property: Record
) -> None:
    data = tmp_path / "data"

    async def crowd(service: Service) -> None:
        gate = threading.Event()
        pid = worker(service)
        claude.plans = [["first", "last"]]
        async with Crowd(service.url, 50) as warm:
            await warm.wait_for("done")
        files, before = open_files(pid), memory(pid)
        claude.plans, claude.poll = [["first", gate, "last"]], 0.5
        async with Crowd(service.url, STREAMS) as crowd:
            await crowd.wait_for('{"text":"first"}')
            await asyncio.sleep(3)
            record_property("KB per stream", (memory(pid) - before) // STREAMS)
            record_property("KB before", before)
            record_property("open files", open_files(pid))
            started = time.monotonic()
            assert (await crowd.client.get("/health")).status_code == 200
            record_property("ms until /health answers", int(1000 * (time.monotonic() - started)))
            assert memory(pid) - before < STREAMS * MAX_KB
            started = time.monotonic()
            gate.set()
            await crowd.wait_for('"status":"complete"')
            record_property("seconds until all have ended", f"{time.monotonic() - started:.1f}")
        wait_until(lambda: open_files(pid) < files + 10)
        record_property("open files after", f"{open_files(pid)}, before {files}")

    with answering(project, data, claude.url) as service:
        asyncio.run(crowd(service))
        service.terminate()
        assert service.ended() == 0
    answers = stored_answers(data)
    assert len(answers) == 50 + STREAMS
    assert set(answers.values()) == {("firstlast", "complete")}
