"""Concurrent read-modify-writes through HTTP: nothing is lost, nobody is told "locked"."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from service import DEADLINE, Service, router_added

CLIENTS = 32
SECONDS = 15.0

COUNTERS = """
from fastapi import APIRouter
from sqlalchemy import text

from app.chassis.database import Reader, Writer

router = APIRouter()


@router.post("/increment")
def increment(session: Writer) -> int:
    session.execute(text("CREATE TABLE IF NOT EXISTS counter (value INTEGER)"))
    value = session.execute(text("SELECT max(value) FROM counter")).scalar()
    if value is None:
        value = 0
        session.execute(text("INSERT INTO counter VALUES (0)"))
    session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})
    return value + 1


@router.get("/counter")
def counter(session: Reader) -> int:
    return session.execute(text("SELECT value FROM counter")).scalar_one()
"""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed()
    with router_added(project, "counters", COUNTERS):
        yield project


def load(url: str, until: float) -> Counter[str]:
    """One client's mix: three increments, a note, and some reads."""
    seen: Counter[str] = Counter()
    with httpx.Client(base_url=url, timeout=DEADLINE) as client:
        while time.monotonic() < until:
            for method, path, body in (
                ("POST", "/increment", None),
                ("GET", "/notes?limit=10", None),
                ("POST", "/increment", None),
                ("POST", "/notes", {"text": "under load"}),
                ("POST", "/increment", None),
                ("GET", "/counter", None),
            ):
                status = client.request(method, path, json=body).status_code
                seen[f"{path} {status}"] += 1
    return seen


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_no_update_is_lost_under_load(project: Path, tmp_path: Path, workers: int) -> None:
    variables = {"WORKERS": str(workers), "LOG_LEVEL": "WARNING"}
    with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
        assert service.client.post("/increment").json() == 1
        until = time.monotonic() + SECONDS
        with ThreadPoolExecutor(CLIENTS) as pool:
            seen = sum(pool.map(load, [service.url] * CLIENTS, [until] * CLIENTS), Counter())
        total = service.client.get("/counter").json()

        print(f"{workers} workers: {seen.total() / SECONDS:.0f} requests/s, {dict(seen)}")
        assert not [key for key in seen if key.split()[-1] not in {"200", "201"}]
        assert total == seen["/increment 200"] + 1
        assert "locked" not in service.output()
        service.terminate()
        assert service.ended() == 0
