"""Copies that the service makes on its volume, whoever is killed and however full it is."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.devices import Device
from support.service import DEADLINE, Service, Writers

pytestmark = pytest.mark.long

WORKERS = 4
FIRST_COPY = 30.0
"""Seconds in which a start has made its copy."""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Path:
    return installed(backup="volume")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with Device.made(tmp_path / "image", tmp_path / "device") as device:
        yield device


def copies(data: Path) -> list[Path]:
    return sorted((data / "backups").glob("app-*.db"))


def wait_for_copies(service: Service, data: Path, number: int) -> list[Path]:
    deadline = time.monotonic() + FIRST_COPY
    while len(copies(data)) < number:
        assert time.monotonic() < deadline, service.output()
        time.sleep(0.1)
    return copies(data)


def notes(copy: Path) -> set[str]:
    connection = sqlite3.connect(f"file:{copy}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {text for (text,) in connection.execute("SELECT text FROM notes")}
    finally:
        connection.close()


def open_files(process: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(entry))
    return found


def children(process: int) -> list[int]:
    return [
        int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def test_one_of_several_workers_copies_while_all_write(project: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Service(project, data, WORKERS=str(WORKERS)) as service:
        service.wait_until_healthy()
        with Writers(service.url) as writers:
            (copy,) = wait_for_copies(service, data, 1)
            time.sleep(2)
        assert copies(data) == [copy]
        assert service.output().count("Made the copy") == 1
        stamp = datetime.strptime(copy.name, "app-%Y%m%dT%H%M%SZ.db").replace(tzinfo=UTC)
        assert abs((datetime.now(UTC) - stamp).total_seconds()) < FIRST_COPY
        assert notes(copy) <= set(service.notes())
        assert not writers.failures
        shown = service.client.get("/health").json()["checks"]["copies"]
        assert shown["status"] == "ok"
        service.terminate()
        assert service.ended() == 0
    # started again and again it makes no more, so that none is pushed out
    with Service(project, data, WORKERS=str(WORKERS)) as service:
        service.wait_until_healthy()
        time.sleep(8)
        assert copies(data) == [copy]


def test_another_worker_takes_over_from_a_killed_one(project: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Service(project, data, WORKERS=str(WORKERS)) as service:
        service.wait_until_healthy()
        (copy,) = wait_for_copies(service, data, 1)
        while "Made the copy" not in service.output():
            time.sleep(0.05)  # the copy is there before the line
        holders = [
            pid for pid in children(service.process.pid) if str(data / "backups") in open_files(pid)
        ]
        assert len(holders) == 1
        copy.unlink()
        os.kill(holders[0], signal.SIGKILL)
        # the next look of another worker's, 30 s after its last
        deadline = time.monotonic() + DEADLINE
        while not copies(data):
            assert time.monotonic() < deadline, service.output()
            time.sleep(0.2)
        time.sleep(1)
        assert len(copies(data)) == 1
        assert service.output().count("Made the copy") == 2


def fill(database: Path, megabytes: int) -> None:
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE filling (content BLOB)")
    for _ in range(megabytes):
        connection.execute("INSERT INTO filling VALUES (randomblob(1000000))")
    connection.commit()
    connection.close()


def test_killed_while_it_copies(project: Path, tmp_path: Path) -> None:
    """Everything, at the moment a copy is under way: no half of one is ever seen."""
    data = tmp_path / "data"
    with Service(project, data) as service:
        service.wait_until_healthy()
        fill(data / "app.db", 60)
        deadline = time.monotonic() + FIRST_COPY
        while not list((data / "backups").glob(".backup-*/copy.db")):
            assert time.monotonic() < deadline, service.output()
            time.sleep(0.001)
        os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait()
    assert copies(data) == []
    (left,) = (data / "backups").glob(".backup-*")
    os.utime(left, (time.time() - 60,) * 2)

    with Service(project, data) as service:
        service.wait_until_healthy()
        assert not left.exists()
        (copy,) = wait_for_copies(service, data, 1)
        notes(copy)
        assert not list((data / "backups").glob(".backup-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which needs root")
def test_a_volume_without_room_for_a_copy(project: Path, device: Device) -> None:
    data = device.mountpoint
    sizes = {"MIN_FREE_BYTES": "1000000", "LOW_FREE_BYTES": "4000000"}
    with Service(project, data, WORKERS="2", **sizes) as service:
        service.wait_until_healthy()
        wait_for_copies(service, data, 1)[0].unlink()
        fill(data / "app.db", 3)
        service.terminate()
        service.ended()
    status = os.statvfs(data)
    (data / "ballast").write_bytes(bytes(status.f_bavail * status.f_frsize - 6_000_000))

    with Service(project, data, WORKERS="2", **sizes) as service:
        service.wait_until_healthy()
        service.wait_for("No copy of the database was made")
        time.sleep(1)
        assert copies(data) == []
        assert not list((data / "backups").iterdir())
        assert service.output().count("No copy of the database was made") == 1
        answer = service.client.get("/health")
        assert answer.status_code == 200
        checks = answer.json()["checks"]
        assert checks["disk"] == {"status": "ok"}
        assert checks["copies"]["message"] == "there is no room for a copy of the database"
        assert service.client.post("/notes", json={"text": "goes on"}).status_code == 201
