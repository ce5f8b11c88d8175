"""Power cuts and kills under write load: what was acknowledged is there, whole and without a hole.

SIGSTOP stands for the instant of a power cut: files copied meanwhile are what the service had
handed to the kernel. A torn log goes further, and so does a disk without what the kernel still
had to write.
"""

import glob
import os
import random
import shutil
import signal
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx2 as httpx
import pytest

from support.devices import Device, run
from support.service import DEADLINE, Service, router_added

pytestmark = pytest.mark.long

CLIENTS = 4
CUTS = 20
DISK_CUTS = 10
KILLS = 10

Record = Callable[[str, object], None]

SENTENCES = """
from fastapi import APIRouter
from sqlalchemy import text

from app.api.notes import NoteIn, create_note
from app.chassis.database import Writer
from app.chassis.routing import DatabaseRoute

router = APIRouter(route_class=DatabaseRoute)

TABLE = "CREATE TABLE IF NOT EXISTS words (note INTEGER NOT NULL REFERENCES notes (id), word TEXT)"
INSERT = "INSERT INTO words VALUES (:note, :word)"


@router.post("/sentences", status_code=201)
def create_sentence(sentence: NoteIn, session: Writer) -> int:
    session.execute(text("PRAGMA wal_autocheckpoint=50"))
    session.execute(text(TABLE))
    note = create_note(sentence, session)
    words = [{"note": note.id, "word": word} for word in sentence.text.split()]
    session.execute(text(INSERT), words)
    return note.id
"""
"""A route of the owner's that writes a note and its words in one transaction.

It has the log copied to the database 20 times as often as usual, so that cuts meet that too.
"""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed(backup="railway")
    with router_added(project, "sentences", SENTENCES):
        yield project


@dataclass
class Load:
    """Clients that write one sentence after the other, and what they were told is written."""

    seed: int
    sent: set[str] = field(default_factory=set)
    acknowledged: dict[int, str] = field(default_factory=dict)
    answered: threading.Event = field(default_factory=threading.Event)
    unanswered: int = 0

    @contextmanager
    def on(self, service: Service) -> Iterator[threading.Event]:
        """Writes until the event is set, or the end; an answer other than 201 fails the test."""
        stopped = threading.Event()
        before = len(self.acknowledged)
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [
                pool.submit(self._write, service.url, f"{before}.{client}", stopped)
                for client in range(CLIENTS)
            ]
            try:
                deadline = time.monotonic() + DEADLINE
                while len(self.acknowledged) == before:
                    assert time.monotonic() < deadline, service.output()
                    time.sleep(0.01)
                yield stopped
            finally:
                stopped.set()
        for client in clients:
            client.result()

    def _write(self, url: str, name: str, stopped: threading.Event) -> None:
        chance = random.Random(f"{self.seed} {name}")
        with httpx.Client(base_url=url, timeout=DEADLINE) as client:
            for number in count():
                if stopped.is_set():
                    return
                words = ["x" * chance.randint(1, 60) for _ in range(chance.randint(1, 30))]
                text = " ".join([name, str(number), *words])
                self.sent.add(text)
                try:
                    answer = client.post("/sentences", json={"text": text})
                except httpx.TransportError:
                    assert stopped.is_set(), "the service went away by itself"
                    self.unanswered += 1
                    return
                assert answer.status_code == 201, answer.text
                self.acknowledged[answer.json()] = text
                self.answered.set()


def sentences(database: Path, load: Load) -> dict[int, str]:
    """What a sound database has: each whole, and no hole among them."""
    with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        kept = dict(connection.execute("SELECT id, text FROM notes ORDER BY id"))
        words: dict[int, list[str]] = {}
        with suppress(sqlite3.OperationalError):  # from before the first sentence
            for note, word in connection.execute("SELECT note, word FROM words ORDER BY rowid"):
                words.setdefault(note, []).append(word)
    assert list(kept) == list(range(1, len(kept) + 1))
    assert {note: text.split() for note, text in kept.items()} == words
    assert set(kept.values()) <= load.sent
    assert all(text == load.acknowledged.get(note, text) for note, text in kept.items())
    return kept


@contextmanager
def paused(service: Service) -> Iterator[None]:
    """No thread of the service runs meanwhile."""
    os.killpg(service.process.pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + DEADLINE
        while set(thread_states(service.process.pid)) != {"T"}:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        yield
    finally:
        os.killpg(service.process.pid, signal.SIGCONT)


def thread_states(group: int) -> Iterator[str]:
    """The state of each thread in a process group (proc_pid_stat(5))."""
    for path in glob.glob("/proc/[0-9]*/task/[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, _, its_group, *_ = Path(path).read_text().rpartition(")")[2].split()
            if int(its_group) == group:
                yield state


def copy_database(source: Path, directory: Path) -> Path:
    """The database and its log, without the log's index, which lives in memory."""
    directory.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{source}{suffix}", directory / f"app.db{suffix}")
    return directory / "app.db"


def losable(log: bytes, index: bytes) -> tuple[int, int]:
    """Where the frames of the log begin and end that no checkpoint has copied to the database.

    Those before were on the disk first: a checkpoint syncs the log before it copies.
    The formats of log and index: https://sqlite.org/walformat.html.
    """
    (page_size,) = struct.unpack_from(">I", log, 8)
    frame = 24 + page_size
    salts = log[16:24]
    end = 32
    while end + frame <= len(log) and log[end + 8 : end + 16] == salts:
        end += frame
    copied, attempted = (struct.unpack_from("=I", index, offset)[0] for offset in (96, 128))
    return min(32 + frame * max(copied, attempted), end), end


@pytest.mark.parametrize("workers", [1, 2])
def test_a_power_cut_at_any_moment(
    project: Path, tmp_path: Path, workers: int, record_property: Record
) -> None:
    chance, load = random.Random(workers), Load(seed=workers)
    database = tmp_path / "data" / "app.db"
    cuts: list[tuple[Path, bytes, dict[int, str]]] = []
    variables = {"WORKERS": str(workers), "LOG_LEVEL": "WARNING"}
    with Service(project, database.parent, **variables).wait_until_healthy() as service:
        with load.on(service):
            for number in range(CUTS):
                time.sleep(chance.uniform(0.02, 0.4))
                with paused(service):
                    copy = copy_database(database, tmp_path / f"cut-{number}")
                    index = Path(f"{database}-shm").read_bytes()
                    # also what was answered before the stop and has been read after it
                    acknowledged = dict(load.acknowledged)
                cuts.append((copy, index, acknowledged))
        service.terminate()
        assert service.ended() == 0
    assert sentences(database, load) == load.acknowledged

    lost: list[int] = []
    restarts = 0
    torn = tmp_path / "torn"
    for copy, index, acknowledged in cuts:
        log = Path(f"{copy}-wal").read_bytes()
        (restarts,) = struct.unpack_from(">I", log, 12)
        begin, end = losable(log, index)
        variants = []
        for tail in (lambda _: b"", bytes, chance.randbytes):
            kept = chance.randint(begin, end)
            shutil.rmtree(torn, ignore_errors=True)
            copy_database(copy, torn)
            (torn / "app.db-wal").write_bytes(log[:kept] + tail(len(log) - kept))
            variants.append(sentences(torn / "app.db", load))
        whole = sentences(copy, load)
        assert acknowledged.items() <= whole.items()
        for variant in variants:
            assert variant.items() <= whole.items()
            lost.append(len(acknowledged.keys() - variant.keys()))
        shutil.rmtree(copy.parent)
    assert any(lost), "no log was torn where it matters"
    record_property("copies, acknowledged rows, lost", f"{CUTS}, {len(acknowledged)}, 0")
    record_property("times that the log began anew", restarts)
    record_property("torn logs, rows lost at their end", f"{len(lost)}, 0 to {max(lost)}")

    with Service(project, torn, **variables).wait_until_healthy() as service:
        assert served(service) == variant
        answer = service.client.post("/sentences", json={"text": "after the cut"})
        assert (answer.status_code, answer.json()) == (201, len(variant) + 1)


def served(service: Service) -> dict[int, str]:
    """Every note that the service has."""
    found: dict[int, str] = {}
    while page := service.client.get("/notes", params={"after": max(found, default=0)}).json():
        found |= {note["id"]: note["text"] for note in page}
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, which needs root")
@pytest.mark.parametrize("synchronous", ["", "NORMAL"], ids=["default", "NORMAL"])
def test_a_power_cut_of_the_disk(
    project: Path, tmp_path: Path, synchronous: str, record_property: Record
) -> None:
    """What the kernel still holds in memory is lost too.

    NORMAL may lose the last commits, as the README says, and shows that the cut is a real one.
    """
    chance, load = random.Random(3), Load(seed=3)
    cuts: list[tuple[Path, dict[int, str]]] = []
    with Device.made(tmp_path / "image", tmp_path / "volume") as device:
        variables = {
            "DATABASE_URL": f"sqlite:///{device.mountpoint}/app.db",
            "LOW_FREE_BYTES": "0",  # the device is small
            "SQLITE_SYNCHRONOUS": synchronous,
            "LOG_LEVEL": "WARNING",
        }
        with Service(project, tmp_path / "home", **variables).wait_until_healthy() as service:
            with load.on(service):
                for number in range(DISK_CUTS):
                    time.sleep(chance.uniform(0.1, 0.5))
                    cut = tmp_path / f"cut-{number}"
                    with paused(service):
                        run("cp", "--sparse=always", device.image, cut)
                        cuts.append((cut, dict(load.acknowledged)))
            service.terminate()
            assert service.ended() == 0

    lost = []
    for cut, acknowledged in cuts:
        with Device.attached(cut, tmp_path / "volume") as device:
            kept = sentences(device.mountpoint / "app.db", load)
        lost.append(len(acknowledged.keys() - kept.keys()))
        cut.unlink()
    record_property("cuts, acknowledged rows", f"{DISK_CUTS}, {len(acknowledged)}")
    record_property("rows lost", f"{min(lost)} to {max(lost)}")
    assert any(lost) == (synchronous == "NORMAL"), lost


def test_kills_at_any_moment(project: Path, tmp_path: Path, record_property: Record) -> None:
    """kill -9 of every process at once, every other one right after an answer."""
    chance, load = random.Random(4), Load(seed=4)
    data = tmp_path / "data"
    kept: dict[int, str] = {}
    for number in range(KILLS):
        variables = {"WORKERS": "1" if number < KILLS / 2 else "2", "LOG_LEVEL": "WARNING"}
        with Service(project, data, **variables).wait_until_healthy() as service:
            assert served(service) == kept
            with load.on(service) as stopped:
                time.sleep(chance.uniform(0.0, 1.0))
                if number % 2:
                    load.answered.clear()
                    assert load.answered.wait(DEADLINE)
                stopped.set()
                os.killpg(service.process.pid, signal.SIGKILL)
        # a copy: the recovery of the files themselves is left to the service
        kept = sentences(copy_database(data / "app.db", tmp_path / f"kill-{number}"), load)
        assert load.acknowledged.items() <= kept.items()
    with Service(project, data).wait_until_healthy() as service:
        assert served(service) == kept
    assert load.unanswered, "no kill met a write"
    record_property("kills, acknowledged rows, lost", f"{KILLS}, {len(load.acknowledged)}, 0")
    record_property("writes that a kill met", load.unanswered)
