"""Every promise about streaming, kept by a service that runs as in production."""

import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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


@pytest.fixture
def claude() -> Iterator[Claude]:
    with Claude() as claude:
        yield claude


@pytest.fixture
def service(project: Path, tmp_path: Path, claude: Claude) -> Iterator[Service]:
    with answering(project, tmp_path / "data", claude.url) as service:
        yield service


@pytest.fixture(params=["direct", "nginx 1.0", "nginx 1.1"])
def url(service: Service, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The service itself, and behind a proxy that speaks this version of HTTP to it."""
    if request.param == "direct":
        yield service.url
        return
    with Nginx(tmp_path / "nginx", service.url) as nginx:
        yield nginx.urls[request.param.removeprefix("nginx ")]


def require_one_by_one(claude: Claude, person: Person) -> None:
    """Each piece arrives before the next one is there to push it along."""
    plan, gates = gated(*TEXTS)
    claude.plans = [plan]
    with person.reading() as events:
        for text, gate in zip(TEXTS, gates, strict=True):
            assert list(pieces(events, 1)) == [text]
            gate.set()
        assert not list(pieces(events))
    assert person.end == "done"


def test_the_first_piece_takes_less_than_100_ms(
    service: Service, claude: Claude, record_property: Record
) -> None:
    claude.plans = [[0.05, "first"]]
    delays = []
    with Person(service.url) as person:
        for number in range(30):
            person.last_id = ""
            with person.reading() as events:
                assert list(pieces(events, 1)) == ["first"]
                delays.append(1000 * (person.heard_at - claude.sent[number]))
                assert not list(pieces(events))
    record_property("ms, median", f"{statistics.median(delays):.1f}")
    record_property("ms, worst of 30", f"{max(delays):.1f}")
    assert statistics.median(delays) < 100


def test_pieces_arrive_one_by_one(url: str, claude: Claude) -> None:
    with Person(url, **{"Accept-Encoding": "gzip"}) as person:
        require_one_by_one(claude, person)
