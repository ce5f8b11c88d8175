"""Starts that overlap or are killed at any moment: the next one is right, and nothing is lost."""

import os
import random
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TypeVar

import httpx2 as httpx
import pytest

from support.service import DEADLINE, FORMS, Service, Writers, free_port, router_added

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]
T = TypeVar("T")

SLOW_WRITE = """
import asyncio

from fastapi import APIRouter, Request

from app.chassis.database import get_database
from app.models import Note

router = APIRouter()


@router.post("/slow")
async def slow(request: Request) -> None:
    await asyncio.sleep(3)
    async with get_database(request).writer.lend() as session:
        session.add(Note(text="slow"))
"""

AT_ONCE = 3

STEPS = 10
STEP_SECONDS = 0.1

REVISION = f"""
import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table("moves", sa.Column("step", sa.Integer(), primary_key=True))
    with op.batch_alter_table("notes") as notes:
        notes.add_column(sa.Column("step", sa.Integer()))
    for step in range({STEPS}):
        op.execute(f"INSERT INTO moves VALUES ({{step}})")
        op.execute(
            "UPDATE notes SET text = 'moved ' || text, step = {{0}} "
            "WHERE id % {STEPS} = {{0}}".format(step)
        )
        time.sleep({STEP_SECONDS})
    op.create_index("ix_notes_step", "notes", ["step"])
"""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed()
    with router_added(project, "slow", SLOW_WRITE):
        yield project


@pytest.fixture(scope="module")
def release(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next release of the project: it has a slow revision in many steps."""
    release = tmp_path_factory.mktemp("release") / "project"
    shutil.copytree(project, release, ignore=shutil.ignore_patterns(".venv"))
    (release / ".venv").symlink_to(project / ".venv")
    (release / "migrations" / "versions" / "0002_moves.py").write_text(REVISION)
    return release


@pytest.fixture(scope="module")
def filled(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume whose service was killed: some notes are in the database, more only in its log."""
    data = tmp_path_factory.mktemp("filled") / "data"
    with Service(project, data).wait_until_healthy() as service:
        with Writers(service.url) as writers:
            writers.wait_for_more(200)
        run(project, data, "backup", str(data / "copy.db"))
        with Writers(service.url) as writers:
            writers.wait_for_more(200)
        kill(service)
    assert (data / "app.db-wal").stat().st_size > 0
    return data


def kill(service: Service) -> None:
    """End every process of the service at once, as the loss of a container does."""
    with suppress(ProcessLookupError):
        os.killpg(service.process.pid, signal.SIGKILL)
    service.process.wait()


def run(project: Path, data: Path, *arguments: str, **variables: str) -> Service:
    """A command of the project that has ended by itself, or was killed."""
    with Service(project, data, [*FORMS["exec"], *arguments], **variables) as command:
        command.ended()
    return command


def copied(data: Path, target: Path) -> Path:
    """A volume like another, as a killed service leaves it."""
    return Path(shutil.copytree(data, target))


def texts(database: Path) -> list[str]:
    """The notes in a database, read from a copy so that nothing about the original changes."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "app.db")
        shutil.copy2(database, copy)
        with suppress(FileNotFoundError):
            shutil.copy2(f"{database}-wal", f"{copy}-wal")
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY id")]


def revisions(data: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(data / "app.db")) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchall()


def require_good_start(project: Path, data: Path) -> Service:
    """Start the service, use it and stop it: all is as if nothing had happened before."""
    with Service(project, data).wait_until_healthy() as service:
        assert service.client.post("/notes", json={"text": "after"}).status_code == 201
        service.terminate()
        assert service.ended() == 0, service.output()
    assert "Traceback" not in service.output()
    return service


def seconds_to_health(project: Path, data: Path) -> float:
    """How long a start takes on this machine."""
    start = time.monotonic()
    with Service(project, data).wait_until_healthy():
        return time.monotonic() - start


def moments(seconds: float, number: int) -> list[float]:
    """So many moments spread over so many seconds, other ones in each run."""
    return [seconds * (index + random.random()) / number for index in range(number)]


def test_the_next_release_waits_for_the_one_before(
    project: Path, release: Path, tmp_path: Path, record_property: Record
) -> None:
    data, port = tmp_path / "data", free_port()
    statuses: list[int] = []
    with (
        Service(project, data).wait_until_healthy() as first,
        Writers(first.url, f"http://127.0.0.1:{port}") as writers,
    ):
        slow = threading.Thread(
            target=lambda: statuses.append(first.client.post("/slow").status_code)
        )
        slow.start()
        writers.wait_for_more(50)
        first.terminate()
        with Service(release, data, port=port) as second:
            second.wait_for("Waiting for the service that still uses")
            waiting = time.monotonic()
            while first.process.poll() is None:
                with pytest.raises(httpx.ConnectError):
                    second.client.get("/health/live")
                time.sleep(0.02)
            record_property("seconds that the second waited", f"{time.monotonic() - waiting:.1f}")
            second.wait_until_healthy()
            writers.wait_for_more(50)
            writers.stop()
            slow.join()
            kept = second.notes()
            second.terminate()
            assert second.ended() == 0

    assert first.process.returncode == 0
    assert statuses == [200]
    record_property("seconds without an answer", f"{writers.longest_silence():.1f}")
    record_property("notes acknowledged", len(writers.acknowledged))
    record_property("requests without an answer", dict(writers.failures))
    # the revision has changed every note that the first release had acknowledged
    kept = [text.removeprefix("moved ") for text in kept]
    assert len(kept) == len(set(kept))
    assert {"slow", *writers.texts()} <= set(kept)
    migrated = [
        (service.output().count("Database migrated"), f"migrated to {head}" in service.output())
        for service, head in ((first, "0001"), (second, "0002"))
    ]
    assert migrated == [(1, True), (1, True)]
    assert revisions(data) == [("0002",)]


def test_one_of_four_at_once_migrates_and_serves(project: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ExitStack() as stack:
        services = [
            stack.enter_context(Service(project, data, LOCK_TIMEOUT="0.5")) for _ in range(4)
        ]
        deadline = time.monotonic() + DEADLINE
        while len(losers := [s for s in services if s.process.poll() is not None]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (winner,) = (service for service in services if service not in losers)
        winner.wait_until_healthy()
        outputs = [service.output() for service in services]

        assert [service.process.returncode for service in losers] == [1, 1, 1]
        assert sum("Database migrated" in output for output in outputs) == 1
        assert "Database migrated" in winner.output()
        for loser in losers:
            *waiting, last = loser.output().splitlines()
            assert last.startswith("Storage: ")
            assert "is in use by another service" in last
            assert all("Waiting for the service" in line for line in waiting)
        assert revisions(data) == [("0001",)]


def outcomes(attempt: Callable[[T], str], kills: Iterable[T]) -> Counter[str]:
    """How often the attempts ended in what way; some run at once, each on a volume of its own."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(pool.map(attempt, kills))


def test_a_migration_killed_at_any_moment(
    release: Path, filled: Path, tmp_path: Path, record_property: Record
) -> None:
    before = texts(filled / "app.db")
    after = [f"moved {text}" for text in before]

    def attempt(moment: float) -> str:
        data = copied(filled, tmp_path / f"volume-{moment}")
        with Service(release, data) as service:
            service.wait_for("Running upgrade 0001 -> 0002")
            time.sleep(moment)
            kill(service)
        found = texts(data / "app.db")
        assert found in (before, after)

        again = require_good_start(release, data)
        assert again.output().count("Database migrated") == (found == before)
        assert texts(data / "app.db") == [*after, "after"]
        assert revisions(data) == [("0002",)]
        return "all of it" if found == after else "nothing of it"

    # from the first step to after the commit
    seen = outcomes(attempt, moments(STEPS * STEP_SECONDS * 1.2, 10))
    record_property("kills in a migration, and what they left", dict(seen))
    assert seen["nothing of it"] > 0


# Ends the process just before one of its changes of the file system, like a kill -9 there.
KILL_BEFORE_CHANGE = """
import os
import signal
import sys

changes = 0


def count(event, arguments):
    global changes
    if event in {"os.mkdir", "os.link", "os.remove", "os.rename", "os.rmdir"}:
        changes += 1
        print(f"change {changes}: {event}", flush=True)
        if changes == int(os.environ["KILL_BEFORE_CHANGE"]):
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(count)
"""


def require_one_or_the_other(project: Path, filled: Path, data: Path) -> str:
    """After a restore that was killed: the database before or the copy, whole in either case."""
    before, copy = texts(filled / "app.db"), texts(filled / "copy.db")
    found = texts(data / "app.db")
    assert found in (before, copy)
    require_good_start(project, data)
    assert texts(data / "app.db") == [*found, "after"]
    assert not list(data.glob(".restore-*"))
    kept = list(data.glob("app.db.replaced-*Z"))
    assert [texts(path) for path in kept] == ([before] if found == copy else [])
    return "the copy" if found == copy else "the database before"


def test_a_restore_killed_before_each_of_its_changes(
    project: Path, filled: Path, tmp_path: Path, record_property: Record
) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(KILL_BEFORE_CHANGE)
    variables = {"PYTHONPATH": str(hook), "PYTHONDONTWRITEBYTECODE": "1"}

    def restore(data: Path, change: int) -> Service:
        arguments = ("restore", str(data / "copy.db"))
        return run(project, data, *arguments, **variables, KILL_BEFORE_CHANGE=str(change))

    def attempt(change: int) -> str:
        data = copied(filled, tmp_path / f"volume-{change}")
        command = restore(data, change)
        assert command.process.returncode == -signal.SIGKILL, command.output()
        return require_one_or_the_other(project, filled, data)

    whole = restore(copied(filled, tmp_path / "whole"), 0)
    assert whole.process.returncode == 0, whole.output()
    changes = whole.output().count("change ")
    seen = outcomes(attempt, range(1, changes + 1))
    record_property("kills in a restore, and what they left", dict(seen))
    assert len(seen) == 2


def test_a_restore_killed_at_any_moment(
    project: Path, filled: Path, tmp_path: Path, record_property: Record
) -> None:
    def attempt(moment: float) -> str:
        data = copied(filled, tmp_path / f"volume-{moment}")
        command = [*FORMS["exec"], "restore", str(data / "copy.db")]
        with Service(project, data, command) as restore:
            time.sleep(moment)
            kill(restore)
        return require_one_or_the_other(project, filled, data)

    data = copied(filled, tmp_path / "measured")
    start = time.monotonic()
    assert run(project, data, "restore", str(data / "copy.db")).process.returncode == 0
    # side by side they take longer
    length = 1.5 * (time.monotonic() - start)
    seen = outcomes(attempt, moments(length, 10))
    record_property("kills in a restore, and what they left", dict(seen))


def test_a_start_killed_at_any_moment(
    project: Path, filled: Path, tmp_path: Path, record_property: Record
) -> None:
    data, port = copied(filled, tmp_path / "data"), free_port()
    before = texts(data / "app.db")
    length = 1.2 * seconds_to_health(project, copied(filled, tmp_path / "measured"))
    reached: Counter[str] = Counter()
    with Writers(f"http://127.0.0.1:{port}", clients=1) as writers:
        for moment in moments(length, 10):
            with Service(project, data, port=port) as service:
                time.sleep(moment)
                kill(service)
            reached[stage(service)] += 1
            with Service(project, data, port=port).wait_until_healthy() as service:
                writers.wait_for_more(10)
                kill(service)
    require_good_start(project, data)
    found = texts(data / "app.db")
    assert found[: len(before)] == before
    assert set(writers.texts()) <= set(found)
    record_property("kills in a start, and how far it was", dict(reached))
    record_property("notes acknowledged", len(writers.acknowledged))
    assert len(reached) > 1


def test_a_first_start_killed_at_any_moment(
    project: Path, tmp_path: Path, record_property: Record
) -> None:
    def attempt(moment: float) -> str:
        data = tmp_path / f"volume-{moment}"
        with Service(project, data) as service:
            time.sleep(moment)
            kill(service)
        require_good_start(project, data)
        assert texts(data / "app.db") == ["after"]
        assert revisions(data) == [("0001",)]
        return stage(service)

    # side by side they take longer
    length = 1.5 * seconds_to_health(project, tmp_path / "measured")
    seen = outcomes(attempt, moments(length, 10))
    record_property("kills in a first start, and how far it was", dict(seen))
    assert len(seen) > 1


def stage(service: Service) -> str:
    """How far a start had come, by what it has said."""
    stages = {
        "Application startup complete": "serving",
        "Starting gunicorn": "server",
        "Database migrated": "migrated",
        "Context impl": "migrating",
    }
    return next((name for text, name in stages.items() if text in service.output()), "before")
