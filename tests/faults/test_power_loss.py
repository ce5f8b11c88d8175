"""Power cuts and kills under write load: what was acknowledged is there, without a hole."""

import os
import random
import shutil
import signal
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import pytest

from devices import Device, run
from service import DEADLINE, Service

pytestmark = pytest.mark.long

CUTS = 30
DISK_CUTS = 10
KILLS = 10
WRITERS = 4

Record = Callable[[str, object], None]


@pytest.fixture
def project(installed: Callable[..., Path]) -> Path:
    return installed(backup="railway")


@dataclass
class Journal:
    """What clients were told is written: the note's id, and its text."""

    acknowledged: dict[int, str] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)

    @contextmanager
    def written_to(self, url: str) -> Iterator[None]:
        """Clients that write one note after the other, until the end or the service's."""
        stopped = threading.Event()
        clients = [
            threading.Thread(target=self._write, args=(url, client, stopped))
            for client in range(WRITERS)
        ]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            stopped.set()
            for client in clients:
                client.join()

    def _write(self, url: str, name: int, stopped: threading.Event) -> None:
        chance = random.Random(name)
        with httpx.Client(base_url=url, timeout=DEADLINE) as client:
            while not stopped.is_set():
                text = f"{name} {len(self.sent)} {'x' * chance.randrange(1900)}"
                self.sent.add(text)
                try:
                    answer = client.post("/notes", json={"text": text})
                except httpx.TransportError:
                    return  # the service was killed
                assert answer.status_code == 201, answer.text
                self.acknowledged[answer.json()["id"]] = text


def require_prefix(database: Path, journal: Journal, acknowledged: dict[int, str]) -> int:
    """A sound database with the first notes and no hole among them.

    Returns:
        How many of the acknowledged notes it does not have: the last ones.
    """
    connection = sqlite3.connect(f"file:{database}?mode=rw", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        kept = dict(connection.execute("SELECT id, text FROM notes ORDER BY id"))
    finally:
        connection.close()
    assert list(kept) == list(range(1, len(kept) + 1))
    assert set(kept.values()) <= journal.sent
    there = {number: text for number, text in acknowledged.items() if number <= len(kept)}
    assert there.items() <= kept.items()
    return len(acknowledged) - len(there)


@contextmanager
def paused(service: Service) -> Iterator[None]:
    """No process of the service runs meanwhile."""
    os.killpg(service.process.pid, signal.SIGSTOP)
    try:
        for process in members(service.process.pid):
            wait_until_stopped(process)
        yield
    finally:
        os.killpg(service.process.pid, signal.SIGCONT)


def members(group: int) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                found.append(process)
        except ProcessLookupError:
            continue
    assert len(found) >= 2, "the server and its worker"
    return found


def wait_until_stopped(process: Path) -> None:
    """Every thread: the signal reaches each at its next return from the kernel."""
    deadline = time.monotonic() + DEADLINE
    for thread in (process / "task").iterdir():
        while (thread / "stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
            time.sleep(0.001)


def torn(log: bytes, index: bytes, chance: random.Random) -> bytes:
    """The log cut at some byte of what is written to it since its last checkpoint.

    What a checkpoint has copied to the database was on the disk before it was copied.
    Both formats: https://sqlite.org/walformat.html.
    """
    (page_size,) = struct.unpack_from(">I", log, 8)
    frame = 24 + page_size
    salts = log[16:24]
    end = 32
    while log[end + 8 : end + 16] == salts and end + frame <= len(log):
        end += frame
    copied, attempted = (struct.unpack_from("=I", index, offset)[0] for offset in (96, 128))
    begin = 32 + frame * max(copied, attempted)
    return log[: chance.randint(min(begin, end), end)]


def test_a_power_cut_at_any_moment(project: Path, tmp_path: Path, record_property: Record) -> None:
    """The files as they are at one instant, and with the end of the log lost."""
    chance, journal = random.Random(1), Journal()
    database = tmp_path / "data" / "app.db"
    cuts: list[tuple[Path, bytes, dict[int, str]]] = []
    variables = {"LOG_LEVEL": "WARNING"}
    with Service(project, database.parent, **variables).wait_until_healthy() as service:
        with journal.written_to(service.url):
            while not journal.acknowledged:
                time.sleep(0.01)
            for number in range(CUTS):
                time.sleep(chance.uniform(0.05, 0.4))
                acknowledged = dict(journal.acknowledged)
                copy = tmp_path / f"cut-{number}" / "app.db"
                copy.parent.mkdir()
                with paused(service):
                    for suffix in ("", "-wal"):
                        shutil.copyfile(f"{database}{suffix}", f"{copy}{suffix}")
                    index = Path(f"{database}-shm").read_bytes()
                cuts.append((copy, index, acknowledged))
        service.terminate()
        assert service.ended() == 0
    assert require_prefix(database, journal, journal.acknowledged) == 0

    lost, restarts = [], 0
    for copy, index, acknowledged in cuts:
        torn_copy = copy.with_name("torn.db")
        shutil.copyfile(copy, torn_copy)
        log = Path(f"{copy}-wal").read_bytes()
        (restarts,) = struct.unpack_from(">I", log, 12)
        Path(f"{torn_copy}-wal").write_bytes(torn(log, index, chance))
        assert require_prefix(copy, journal, acknowledged) == 0
        lost.append(require_prefix(torn_copy, journal, acknowledged))
    assert any(lost), "nothing was cut off"
    record_property("times that the log began anew", restarts)
    record_property("copies, rows, lost", f"{CUTS}, {len(journal.acknowledged)}, 0")
    record_property("lost with a torn log (rows, least to most)", f"{min(lost)} to {max(lost)}")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, which needs root")
@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_a_power_cut_of_the_disk(
    project: Path, tmp_path: Path, synchronous: str, record_property: Record
) -> None:
    """The disk as it is at one instant: what the kernel still holds in memory is lost.

    FULL loses nothing; NORMAL may lose the last commits, and shows that the cut is a real one.
    """
    chance, journal = random.Random(3), Journal()
    cuts: list[tuple[Path, dict[int, str]]] = []
    with Device.made(tmp_path / "image", tmp_path / "device") as device:
        variables = {
            "DATABASE_URL": f"sqlite:///{device.mountpoint}/app.db",
            "SQLITE_SYNCHRONOUS": synchronous,
            "LOG_LEVEL": "WARNING",
        }
        with Service(project, tmp_path / "home", **variables).wait_until_healthy() as service:
            with journal.written_to(service.url):
                for number in range(DISK_CUTS):
                    time.sleep(chance.uniform(0.1, 0.6))
                    acknowledged = dict(journal.acknowledged)
                    image = tmp_path / f"cut-{number}"
                    with paused(service):
                        run("cp", "--sparse=always", device.image, image)
                    cuts.append((image, acknowledged))
            service.terminate()
            assert service.ended() == 0

    lost = []
    for image, acknowledged in cuts:
        with Device.attached(image, tmp_path / "device") as device:
            database = device.mountpoint / "app.db"
            lost.append(require_prefix(database, journal, acknowledged))
    record_property("cuts, rows, lost", f"{DISK_CUTS}, {len(journal.acknowledged)}, {sum(lost)}")
    assert any(lost) == (synchronous == "NORMAL"), lost


def test_kills_at_any_moment(project: Path, tmp_path: Path, record_property: Record) -> None:
    """kill -9 of every process at once, and a start on what that leaves."""
    chance, journal = random.Random(2), Journal()
    data = tmp_path / "data"
    for _ in range(KILLS):
        with Service(project, data, LOG_LEVEL="WARNING").wait_until_healthy() as service:
            assert has_everything(service, journal)
            with journal.written_to(service.url):
                time.sleep(chance.uniform(0.2, 1.0))
                os.killpg(service.process.pid, signal.SIGKILL)
    assert require_prefix(data / "app.db", journal, journal.acknowledged) == 0
    record_property("kills, rows, lost", f"{KILLS}, {len(journal.acknowledged)}, 0")


def has_everything(service: Service, journal: Journal) -> bool:
    """Every acknowledged note is served after the restart."""
    served: dict[int, str] = {}
    while page := service.client.get(f"/notes?after={max(served, default=0)}").json():
        served |= {note["id"]: note["text"] for note in page}
    return journal.acknowledged.items() <= served.items()
