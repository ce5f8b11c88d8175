"""What /health notices, and that it always answers."""

import asyncio
import errno
import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.chassis import health
from app.chassis.application import create_application
from app.chassis.checks import finding
from app.chassis.checks.finding import Details
from app.chassis.database import Database
from app.chassis.health import Degraded, HealthCheck, Unhealthy
from app.chassis.sqlite import health as of_sqlite
from app.chassis.sqlite.driver import open_database
from app.settings import Settings

from .databases import make_database

Told = list[tuple[str, str]]


class Queue:
    """A check whose figures change with every look."""

    length = 0

    def check(self) -> None:
        if self.length:
            self.length += 1
            raise Degraded(f"{self.length} jobs wait") from RuntimeError("of the printer")


def database_of(client: TestClient) -> Database:
    assert isinstance(client.app, FastAPI)
    database: Database = client.app.state.database
    return database


def failure(client: TestClient, check: str = "database") -> str:
    """The message of the one check that failed."""
    answer = client.get("/health")
    assert answer.status_code == 503
    body = answer.json()
    assert body["status"] == "failed"
    failed = {name for name, result in body["checks"].items() if result["status"] == "failed"}
    assert failed == {check}
    message: str = body["checks"][check]["message"]
    return message


def test_a_healthy_service_says_what_it_is(client: TestClient) -> None:
    answer = client.get("/health")

    assert answer.status_code == 200
    checks = answer.json()["checks"]
    assert answer.json() == {
        "status": "ok",
        "version": "unreleased",
        "environment": "development",
        "checks": checks,
    }
    # the service's own are among them
    assert checks.items() >= {"database": {"status": "ok"}, "disk": {"status": "ok"}}.items()


def test_a_deleted_database_and_its_return(client: TestClient, settings: Settings) -> None:
    path = settings.database_path
    kept = path.rename(path.with_name("kept"))
    assert failure(client) == "the database file is missing"
    assert not path.exists()

    kept.rename(path)
    assert client.get("/health").status_code == 200


def test_an_empty_file_in_its_place(client: TestClient, settings: Settings) -> None:
    kept = settings.database_path.rename(settings.database_path.with_name("kept"))
    settings.database_path.touch()
    assert failure(client) == "the database file was replaced"

    kept.replace(settings.database_path)
    assert client.get("/health").status_code == 200


def test_an_emptied_file_keeps_its_log(client: TestClient, settings: Settings) -> None:
    with database_of(client).write() as session:
        session.execute(text("CREATE TABLE only_in_the_log (id INTEGER)"))
    log = settings.database_path.with_name("app.db-wal")
    before, content = log.read_bytes(), settings.database_path.read_bytes()
    os.truncate(settings.database_path, 0)
    assert failure(client) == "the database file is empty"
    assert log.read_bytes() == before

    settings.database_path.write_bytes(content)
    assert client.get("/health").status_code == 200


def test_a_header_that_the_log_still_has(client: TestClient, settings: Settings) -> None:
    connection = open_database(settings.database_path)
    connection.execute("PRAGMA user_version=1")
    with settings.database_path.open("r+b") as file:
        file.write(bytes(100))

    assert failure(client) == "the file is not a database"
    connection.close()


def test_a_zeroed_header(client: TestClient, settings: Settings) -> None:
    with settings.database_path.open("r+b") as file:
        file.write(bytes(100))

    assert failure(client) == "the file is not a database"


def test_a_database_behind_the_code(client: TestClient, settings: Settings) -> None:
    connection = open_database(settings.database_path)
    connection.execute("DELETE FROM alembic_version")

    assert failure(client) == "the database is not at this release's schema"

    connection.execute("INSERT INTO alembic_version VALUES ('newer than the code')")
    connection.close()
    assert client.get("/health").status_code == 200


def test_a_locked_database_in_bounded_time(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_sqlite, "WRITE_TIMEOUT", 0.2)
    holder = open_database(settings.database_path)
    holder.execute("BEGIN IMMEDIATE")
    assert failure(client) == "the database is locked"

    holder.close()
    assert client.get("/health").status_code == 200


def test_a_full_volume(settings: Settings) -> None:
    make_database(settings)
    full = settings.model_copy(update={"min_free_bytes": 2**62})

    with TestClient(create_application(full)) as client:
        assert failure(client, "disk") == "the volume is full"


def test_a_volume_that_fills_is_said_before_it_is_full(settings: Settings) -> None:
    make_database(settings)
    filling = settings.model_copy(update={"low_free_bytes": 2**62})

    with TestClient(create_application(filling)) as client:
        answer = client.get("/health")

    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    assert answer.json()["checks"]["disk"] == {
        "status": "degraded",
        "message": "the volume is nearly full",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_database(client: TestClient, settings: Settings) -> None:
    with database_of(client).read() as session:
        # opens a connection, whose descriptor SQLite can use again
        session.execute(text("SELECT 1"))
    settings.database_path.chmod(0o400)
    assert failure(client) == "the database is read-only"

    settings.database_path.chmod(0o600)
    settings.database_path.parent.chmod(0o500)
    assert failure(client) == "the database is read-only"
    settings.database_path.parent.chmod(0o700)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_file_system(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)
        assert failure(client) == "the database is read-only"
    assert client.get("/health").status_code == 200


def test_a_service_adds_its_own_checks(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT", 0.2)

    def well() -> None:
        pass

    def measured() -> Details:
        return {"queue": 3}

    def late() -> None:
        raise Degraded("the printer is slow", {"pages": 7})

    def ill() -> None:
        raise Unhealthy("the printer is out of paper")

    async def slow() -> None:
        await asyncio.sleep(60)

    async def broken() -> None:
        raise RuntimeError("password=hunter2")

    make_database(settings)
    checks: dict[str, HealthCheck] = {
        "well": well,
        "measured": measured,
        "late": late,
        "ill": ill,
        "slow": slow,
        "broken": broken,
    }
    with TestClient(create_application(settings, health_checks=checks)) as client:
        answer = client.get("/health")

    assert answer.status_code == 503
    found = answer.json()["checks"]
    # that of the copies, with an answer that has one
    assert {name: result for name, result in found.items() if name != "copies"} == {
        "database": {"status": "ok"},
        "disk": {"status": "ok"},
        "readers": {"status": "ok"},
        "well": {"status": "ok"},
        "measured": {"status": "ok", "details": {"queue": 3}},
        "late": {
            "status": "degraded",
            "message": "the printer is slow",
            "details": {"pages": 7},
        },
        "ill": {"status": "failed", "message": "the printer is out of paper"},
        "slow": {"status": "failed", "message": "no answer within 0 s"},
        "broken": {"status": "failed", "message": "the check itself failed"},
    }


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Told]]:
    """What the log was told of /health since the last time."""
    monkeypatch.setattr(finding, "HEALTH", mmap.mmap(-1, 1024))
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler = QueueHandler(records)  # of its own: an application brings its configuration along
    health.logger.addHandler(handler)

    def take() -> Told:
        found = [records.get() for _ in range(records.qsize())]
        return [(record.levelname, record.getMessage()) for record in found]

    yield take
    health.logger.removeHandler(handler)


def test_the_log_has_the_reason_once_a_change(settings: Settings, told: Callable[[], Told]) -> None:
    make_database(settings)
    queue = Queue()
    app = create_application(settings, health_checks={"queue": queue.check})
    kept = settings.database_path.with_name("kept")
    with TestClient(app) as client:

        def ask() -> Told:
            for _ in range(3):
                client.get("/health")
            return told()

        assert ask() == []
        settings.database_path.rename(kept)
        missing = "database failed: the database file is missing"
        assert ask() == [("ERROR", f"/health: {missing}")]
        queue.length = 100
        degraded = "queue degraded: 101 jobs wait (of the printer)"
        assert ask() == [("ERROR", f"/health: {missing}; {degraded}")]
        kept.rename(settings.database_path)
        assert ask() == [("WARNING", "/health: queue degraded: 104 jobs wait (of the printer)")]
        queue.length = 0
        assert ask() == [("INFO", "/health: all is well again")]


def test_what_one_worker_has_told_another_does_not(
    settings: Settings, told: Callable[[], Told]
) -> None:
    make_database(settings)
    workers = [TestClient(create_application(settings)) for _ in range(3)]
    for worker in workers:
        worker.get("/health")
    kept = settings.database_path.rename(settings.database_path.with_name("kept"))
    for worker in workers[:2]:
        worker.get("/health")
    assert len(told()) == 1
    kept.rename(settings.database_path)
    # one that began while it was ill, in place of one that has told of it
    workers = [TestClient(create_application(settings)), *workers[1:]]
    for worker in workers:
        worker.get("/health")
    assert told() == [("INFO", "/health: all is well again")]


def test_an_error_of_a_check_is_logged_with_its_place(
    settings: Settings, told: Callable[[], Told]
) -> None:
    def broken() -> None:
        raise RuntimeError("no route to the printer")

    make_database(settings)
    with TestClient(create_application(settings, health_checks={"broken": broken})) as client:
        client.get("/health")
        client.get("/health")
    ((level, text),) = told()
    assert level == "ERROR"
    reason = "the check itself failed (no route to the printer)"
    assert text.startswith(f"/health: broken failed: {reason}\nTraceback ")
    assert "in broken\n" in text


def test_many_who_ask_at_once_share_a_proof(settings: Settings) -> None:
    made: list[int] = []

    async def count() -> Details:
        made.append(1)
        await asyncio.sleep(0.05)
        return {"made": len(made)}

    make_database(settings)
    app = create_application(settings, health_checks={"count": count})

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answers = await asyncio.gather(*[client.get("/health") for _ in range(20)])
            answers.append(await client.get("/health"))
        return [answer.json()["checks"]["count"]["details"]["made"] for answer in answers]

    numbers = asyncio.run(ask())
    assert set(numbers[:-1]) <= {1, 2}
    assert numbers[-1] == len(made) <= 3


def test_live_needs_no_database(client: TestClient, settings: Settings) -> None:
    settings.database_path.unlink()

    assert client.get("/health/live").status_code == 200
    assert client.head("/health/live").status_code == 200


def test_monitors_may_ask_with_head(client: TestClient, settings: Settings) -> None:
    assert client.head("/health").status_code == 200
    settings.database_path.unlink()
    assert client.head("/health").status_code == 503


def test_no_descriptor_is_left_open(client: TestClient) -> None:
    client.get("/health")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        client.get("/health")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
