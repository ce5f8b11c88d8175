"""Streams that have to wait, and services that stop, are killed or have several workers."""

import os
import random
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

import httpx2 as httpx
import pytest

from support.service import Service
from support.streams import (
    ANSWERS,
    Claude,
    Nginx,
    Person,
    answering,
    pieces,
    stored_answers,
    wait_until,
    workers,
)

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

PEOPLE = 20

WORDS = [f"{number} " for number in range(10_000)]


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Path:
    return installed(**ANSWERS)


@pytest.fixture
def claude() -> Iterator[Claude]:
    with Claude() as claude:
        yield claude


def talking(pause: float) -> list[object]:
    """A plan that goes on for longer than any test."""
    return [step for word in WORDS for step in (word, pause)]


def test_heartbeats_fill_a_silence_of_40_s(
    project: Path, tmp_path: Path, claude: Claude, record_property: Record
) -> None:
    claude.plans = [[40.0, "at last"]]
    (tmp_path / "nginx").mkdir()

    def listen(url: str) -> tuple[list[float], str]:
        gaps = []
        with Person(url) as person, person.reading() as events:
            before = person.heard_at
            while not person.text:
                event = next(events)
                assert event.text or event.comment == "heartbeat"
                gaps.append(person.heard_at - before)
                before = person.heard_at
            return gaps, person.text

    with (
        answering(project, tmp_path / "data", claude.url) as service,
        Nginx(tmp_path / "nginx", service.url) as nginx,
        ThreadPoolExecutor() as pool,
    ):
        heard = list(pool.map(listen, [service.url, *nginx.urls.values()]))
    record_property("seconds between", [[round(gap, 1) for gap in gaps] for gaps, _ in heard])
    for gaps, text in heard:
        assert text == "at last"
        assert len(gaps) > 2
        # that often, and not much later: the proxy would have given up after 20 s
        assert max(gaps) < 19


@pytest.mark.parametrize("number", [1, 2])
def test_a_stop_ends_streams_and_loses_nothing(
    project: Path, tmp_path: Path, claude: Claude, number: int, record_property: Record
) -> None:
    data = tmp_path / "data"
    claude.plans = [talking(0.05)]
    count = random.randrange(10, 50)
    with ExitStack() as stack:
        service = stack.enter_context(answering(project, data, claude.url, WORKERS=str(number)))
        people = [stack.enter_context(Person(service.url)) for _ in range(PEOPLE)]
        with ThreadPoolExecutor(PEOPLE) as pool:
            reading = [pool.submit(person.read) for person in people]
            wait_until(lambda: min(len(person.arrivals) for person in people) > count)
            stopped = time.monotonic()
            service.terminate()
            code = service.ended()
            ended = time.monotonic()
            for each in reading:
                each.result()
        assert code == 0, service.output()
        assert {person.end for person in people} == {"shutdown"}
        record_property(
            "seconds until the last stream ended",
            f"{max(person.heard_at for person in people) - stopped:.2f}",
        )
        record_property("seconds until the service ended", f"{ended - stopped:.2f}")
        assert ended - stopped < 15

        stored = stored_answers(data)
        received = 0
        for person in people:
            text, status = stored[person.thread_id]
            assert status == "interrupted"
            assert text.startswith(person.text)
            assert "".join(WORDS).startswith(text)
            received += len(person.text)
        record_property("characters received", received)

        # who comes back to the next service gets what is there, and that it is all
        with answering(project, data, claude.url, WORKERS=str(number), port=service.port):
            for person in people:
                person.read()
                assert person.end == "done"
                assert (person.text, "interrupted") == stored[person.thread_id]


def test_a_client_that_reads_nothing_holds_up_no_stop(
    project: Path, tmp_path: Path, claude: Claude, record_property: Record
) -> None:
    data = tmp_path / "data"
    block = "x" * 2**16
    claude.plans = [[block] * 64 + [threading.Event()]]
    with (
        answering(project, data, claude.url) as service,
        Person(service.url) as person,
        socket.socket() as deaf,
    ):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", service.port))
        request = (
            f"POST /threads/{person.thread_id}/chat HTTP/1.1\r\nHost: localhost\r\n"
            'Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{"text":"Hi"}'
        )
        deaf.sendall(request.encode())
        wait_until(lambda: len(claude.sent) == 64)
        wait_until(lambda: person.stored() == (64 * block, "streaming"))
        started = time.monotonic()
        service.terminate()
        assert service.ended() == 0
        seconds = time.monotonic() - started
    record_property("seconds", f"{seconds:.1f}")
    assert seconds < 25
    (answer,) = stored_answers(data).values()
    assert answer == (64 * block, "interrupted")


KILLS = 3


def test_a_kill_loses_a_second_of_text(
    project: Path, tmp_path: Path, claude: Claude, record_property: Record
) -> None:
    data = tmp_path / "data"
    claude.plans = [talking(0.02)]
    lost = []
    with ExitStack() as stack:
        for _ in range(KILLS):
            service = stack.enter_context(answering(project, data, claude.url))
            people = [stack.enter_context(Person(service.url)) for _ in range(5)]
            with ThreadPoolExecutor() as pool:
                reading = [pool.submit(read_until_cut, person) for person in people]
                wait_until(lambda: min(len(person.arrivals) for person in people) > 20)  # noqa: B023
                time.sleep(random.uniform(3, 4))
                killed = time.monotonic()
                os.killpg(service.process.pid, signal.SIGKILL)
                service.process.wait()
                for each in reading:
                    each.result()
            stored = stored_answers(data)
            for person in people:
                text, status = stored[person.thread_id]
                assert status == "interrupted"
                assert "".join(WORDS).startswith(text)
                missing = [at for at, length in person.arrivals if length > len(text)]
                lost.append(killed - missing[0] if missing else 0.0)
        record_property("seconds of text lost, median", f"{statistics.median(lost):.2f}")
        record_property(f"seconds of text lost, worst of {len(lost)}", f"{max(lost):.2f}")
        assert statistics.median(lost) < 2
        assert max(lost) < 4

        claude.plans = [["again"]]
        with answering(project, data, claude.url, port=service.port):
            person = people[0]
            person.read()
            assert person.end == "done"
            assert "".join(WORDS).startswith(person.text)
            wait_until(lambda: person.ask_anew() == 200)
            record_property("seconds until written to", f"{time.monotonic() - killed:.1f}")
            assert time.monotonic() - killed < 20
            assert person.stored() == ("again", "complete")


def read_until_cut(person: Person) -> None:
    with suppress(httpx.TransportError):
        person.read()


@contextmanager
def asleep(pid: int) -> Iterator[None]:
    """A worker that accepts no connection; its timeout is much longer."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def started(service: Service) -> list[int]:
    """The workers, once both take requests."""
    wait_until(lambda: service.output().count("Application startup complete") == 2)
    return workers(service)


def test_another_worker_goes_on_from_what_is_stored(
    project: Path, tmp_path: Path, claude: Claude
) -> None:
    """And the first one goes on writing, because somebody follows elsewhere."""
    words = WORDS[:200]
    claude.plans = [[step for word in words for step in (word, 0.02)]]
    with answering(project, tmp_path / "data", claude.url, WORKERS="2") as service:
        first, second = started(service)
        for count in (0, 1, 20, 100):
            with Person(service.url) as person:
                with ExitStack() as stream:
                    with asleep(second):
                        events = stream.enter_context(person.reading())
                    for _ in islice(pieces(events), count):
                        pass
                with ExitStack() as stream:
                    with asleep(first):
                        events = stream.enter_context(person.reading("GET"))
                    for _ in pieces(events):
                        pass
                assert person.end == "done"
                assert (person.text, "complete") == person.stored()
                assert person.text == "".join(words)


def test_another_worker_shows_an_answer_to_its_end(
    project: Path, tmp_path: Path, claude: Claude
) -> None:
    claude.plans = [[step for word in WORDS[:100] for step in (word, 0.03)]]
    with (
        answering(project, tmp_path / "data", claude.url, WORKERS="2") as service,
        Person(service.url) as person,
        Person(service.url) as onlooker,
        ExitStack() as streams,
    ):
        first, second = started(service)
        with asleep(second):
            written = streams.enter_context(person.reading())
        onlooker.thread_id, onlooker.last_id = person.thread_id, person.last_id
        with asleep(first):
            seen = streams.enter_context(onlooker.reading("GET"))
        with ThreadPoolExecutor() as pool:
            list(pool.map(list, [written, seen]))
        assert person.text == onlooker.text == "".join(WORDS[:100])
        assert person.end == onlooker.end == "done"
        assert person.stored() == (person.text, "complete")


def test_cuts_with_two_workers(
    project: Path, tmp_path: Path, claude: Claude, record_property: Record
) -> None:
    """Whichever takes the request: what has arrived is what is stored."""
    claude.plans = [[step for word in WORDS[:200] for step in (word, 0.01)]]
    choose = random.Random(seed := random.randrange(10**6))
    print("seed", seed)

    def read_in_bits(person: Person) -> int:
        cuts = 0
        while not person.end:
            person.read(choose.randrange(6))
            cuts += 1
        return cuts

    with (
        answering(project, tmp_path / "data", claude.url, WORKERS="2") as service,
        ExitStack() as stack,
        ThreadPoolExecutor() as pool,
    ):
        started(service)
        people = [stack.enter_context(Person(service.url)) for _ in range(4)]
        record_property("connections", list(pool.map(read_in_bits, people)))
        stored = [person.stored() for person in people]
    assert {person.end for person in people} == {"done"}
    assert [person.text for person in people] == [text for text, _ in stored]
    record_property("answers", [status for _, status in stored])
