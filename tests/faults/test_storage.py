"""Storage that breaks under a running service, and comes back."""

import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest

from support.devices import Device, run
from support.load import WRITERS, Load, during, health, wait_for_health
from support.service import Service

pytestmark = pytest.mark.long

HANG = 6.5
"""Seconds after which a request counts as hung: the wait for the lock is 5 s."""

KILLED_STARTS = 5
TEXT = "x" * 500

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, which needs root")


@pytest.fixture
def project(installed: Callable[..., Path]) -> Path:
    return installed(backup="railway")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with Device.made(tmp_path / "image", tmp_path / "device") as device:
        yield device


def rows(database: Path) -> list[str]:
    """Every note, in a database that SQLite finds no fault with."""
    connection = sqlite3.connect(f"file:{database}?mode=rw", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY id")]
    finally:
        connection.close()


Record = Callable[[str, object], None]
Fault = Callable[[Path], Iterator[None]]
"""Breaks something, yields, and takes the cause away."""


def parts(database: Path) -> list[Path]:
    """The database's files; the database comes last, so that its log is there when it is."""
    named = [database.with_name(f"{database.name}{suffix}") for suffix in ("-shm", "-wal", "")]
    return [part for part in named if part.exists()]


def moved_away(database: Path) -> Iterator[None]:
    """`mv app.db* elsewhere/`, and back."""
    elsewhere = database.with_name("elsewhere")
    elsewhere.mkdir()
    for part in reversed(parts(database)):
        part.rename(elsewhere / part.name)
    yield
    for part in parts(elsewhere / database.name):
        part.rename(database.with_name(part.name))


def moved_away_without_its_log(database: Path) -> Iterator[None]:
    kept = database.rename(database.with_name("elsewhere"))
    yield
    kept.rename(database)


def copy_of(database: Path) -> Path:
    """A consistent copy as `python -m app backup` makes it."""
    copy = database.with_name("copy.db")
    source, target = sqlite3.connect(database), sqlite3.connect(copy)
    source.backup(target)
    target.execute("PRAGMA journal_mode=DELETE")
    target.close()
    source.close()
    return copy


def replaced_by_a_copy(database: Path) -> Iterator[None]:
    """`mv copy.db app.db`: the log stays, and belongs to the file that was there before."""
    copy = copy_of(database)
    kept = database.with_name("kept")
    os.link(database, kept)
    copy.replace(database)
    yield
    kept.replace(database)


def replaced_by_a_copy_without_the_log(database: Path) -> Iterator[None]:
    copy = copy_of(database)
    away = moved_away(database)
    next(away)
    copy.replace(database)
    yield
    for part in parts(database):
        part.unlink()
    next(away, None)


def replaced_by_an_empty_file(database: Path) -> Iterator[None]:
    kept = database.with_name("kept")
    os.link(database, kept)
    (empty := database.with_name("empty")).touch()
    empty.replace(database)
    yield
    kept.replace(database)


def emptied(database: Path) -> Iterator[None]:
    """`: > app.db`, and its content back in the same file."""
    content = database.read_bytes()
    os.truncate(database, 0)
    yield
    with database.open("r+b") as file:
        file.write(content)


def header_zeroed(database: Path) -> Iterator[None]:
    with database.open("r+b") as file:
        header = file.read(100)
        file.seek(0)
        file.write(bytes(100))
    yield
    with database.open("r+b") as file:
        file.write(header)


def locked(database: Path, statement: str) -> Iterator[None]:
    other = sqlite3.connect(database, isolation_level=None, timeout=30)
    other.execute(statement)
    yield
    other.execute("ROLLBACK")
    other.close()


def locked_exclusively(database: Path) -> Iterator[None]:
    yield from locked(database, "BEGIN EXCLUSIVE")


def locked_for_writing(database: Path) -> Iterator[None]:
    yield from locked(database, "BEGIN IMMEDIATE")


@dataclass
class Course:
    """How a service came through a fault."""

    during: dict[str, set[int]]
    output: str


def live_through(
    project: Path,
    home: Path,
    database: Path,
    fault: Iterator[None],
    cause: str,
    record_property: Record,
    text: str = TEXT,
) -> Course:
    """A service under load: well, broken, and well again by itself, with nothing lost."""
    variables = {"DATABASE_URL": f"sqlite:///{database}", "LOG_LEVEL": "WARNING"}
    with Service(project, home, **variables).wait_until_healthy() as service:
        with Load(service.url, text).running() as load:
            load.wait_for(201, 50, since=0)
            with during(fault):
                noticed, message = wait_for_health(service, 503)
                told = time.monotonic()
                load.wait_for(503, 2 * WRITERS, since=told)
                assert health(service)[0] == 503
                mended = time.monotonic()
            recovered, _ = wait_for_health(service, 200)
            well = time.monotonic()
            load.wait_for(201, 50, since=well)
        service.terminate()
        assert service.ended() == 0, service.output()
        assert "Traceback" not in service.output(), service.output()

    assert cause in message
    require_nothing_lost(load, database, record_property)
    record_property("noticed and recovered after (s)", f"{noticed:.2f}, {recovered:.2f}")
    return Course(load.statuses(told, until=mended), service.output())


def require_nothing_lost(load: Load, database: Path, record_property: Record) -> None:
    """What was acknowledged is there, once and whole, and every answer came in time."""
    slowest = max(answer.ended - answer.began for answer in load.answers)
    record_property("slowest answer (s)", round(slowest, 2))
    kept, written = rows(database), load.written()
    record_property("rows acknowledged, lost", f"{len(written)}, {len(set(written) - set(kept))}")
    assert set(written) <= set(kept)
    assert len(kept) == len(set(kept))
    # a text that was cut is none that was sent
    assert set(kept) <= {answer.text for answer in load.between(0, "POST")}
    assert load.statuses(0)["POST"] == {201, 503}
    assert load.statuses(0)["GET"] <= {200, 503}
    assert all(answer.body["detail"] for answer in load.answers if answer.status == 503)
    assert slowest < HANG
    assert load.broken_off == 0


@pytest.mark.parametrize(
    ("fault", "cause", "reads"),
    [
        pytest.param(moved_away, "the database file is missing", 503, id="moved away"),
        pytest.param(
            moved_away_without_its_log,
            "the database file is missing",
            503,
            id="moved away without its log",
        ),
        pytest.param(
            replaced_by_a_copy, "the database file was replaced", 503, id="replaced by a copy"
        ),
        pytest.param(
            replaced_by_a_copy_without_the_log,
            "the database file was replaced",
            503,
            id="replaced by a copy without the log",
        ),
        pytest.param(
            replaced_by_an_empty_file,
            "the database file was replaced",
            503,
            id="replaced by an empty file",
        ),
        pytest.param(emptied, "the database file is empty", 503, id="emptied"),
        pytest.param(header_zeroed, "the file is not a database", 503, id="header zeroed"),
        pytest.param(locked_exclusively, "the database is locked", 200, id="locked exclusively"),
        pytest.param(locked_for_writing, "the database is locked", 200, id="locked for writing"),
    ],
)
def test_a_broken_file(
    project: Path, tmp_path: Path, fault: Fault, cause: str, reads: int, record_property: Record
) -> None:
    database = tmp_path / "volume" / "app.db"
    database.parent.mkdir()
    course = live_through(
        project, tmp_path / "home", database, fault(database), cause, record_property
    )
    assert course.during == {"GET": {reads}, "POST": {503}}


def unmounted(device: Device) -> Iterator[None]:
    device.unmount("-l")
    yield
    device.mount()


def unwritable(device: Device) -> Iterator[None]:
    """Readable, with EPERM for every write.

    The kernel refuses `mount -o remount,ro` while a file is open for writing.
    """
    with pytest.raises(AssertionError, match="busy"):
        run("mount", "-o", "remount,ro", device.mountpoint)
    # not the log's index, which is mapped: it would be SIGBUS instead of an error
    files = [part for part in parts(device.mountpoint / "app.db") if part.suffix != ".db-shm"]
    run("chattr", "+i", *files)
    yield
    run("chattr", "-i", *files)


def full(device: Device) -> Iterator[None]:
    """Not a block is left; writes go on meanwhile and take what they can."""
    filler = device.mountpoint / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(65536))
    yield
    filler.unlink()


@as_root
@pytest.mark.parametrize(
    ("fault", "cause", "reads", "writes"),
    [
        pytest.param(unmounted, "the database file is missing", 503, {503}, id="unmounted"),
        pytest.param(unwritable, "the database is read-only", 200, {503}, id="unwritable"),
        # what a transaction needs may have been in the log already
        pytest.param(full, "the volume is full", 200, {201, 503}, id="full"),
    ],
)
def test_a_broken_volume(
    project: Path,
    tmp_path: Path,
    device: Device,
    fault: Callable[[Device], Iterator[None]],
    cause: str,
    reads: int,
    writes: set[int],
    record_property: Record,
) -> None:
    database = device.mountpoint / "app.db"
    course = live_through(
        project, tmp_path / "home", database, fault(device), cause, record_property, "x" * 1900
    )
    assert course.during["GET"] == {reads}
    assert 503 in course.during["POST"] <= writes
    assert ("database or disk is full" in course.output) == (fault is full)


@as_root
def test_a_file_system_that_turned_read_only(
    project: Path, tmp_path: Path, device: Device, record_property: Record
) -> None:
    """What ext4 does when it finds an error: only a check of the unmounted volume ends it.

    A worker that has to write to the mapped index of the log ends with SIGBUS and is replaced.
    """
    database = device.mountpoint / "app.db"
    variables = {
        "DATABASE_URL": f"sqlite:///{database}",
        "LOG_LEVEL": "WARNING",
        "LOW_FREE_BYTES": "0",  # the device is small
    }
    with Service(project, tmp_path / "home", **variables).wait_until_healthy() as service:
        with Load(service.url, TEXT).running() as load:
            load.wait_for(201, 50, since=0)
            Path("/sys/fs/ext4", Path(device.loop).name, "trigger_fs_error").write_text("a test")
            noticed, message = wait_for_health(service, 503)
            told = time.monotonic()
            load.wait_for(503, 2 * WRITERS, since=told)
        service.terminate()
        assert service.ended() == 0, service.output()
    assert message == "the database is read-only"
    assert load.statuses(told) == {"GET": {200}, "POST": {503}}
    assert load.broken_off <= WRITERS + 1

    device.unmount()
    run("e2fsck", "-p", device.loop, codes=(1,))  # 1: errors were found and corrected
    device.mount()
    with Service(project, tmp_path / "home", **variables).wait_until_healthy() as service:
        assert service.client.post("/notes", json={"text": "after the check"}).status_code == 201
        service.terminate()
        assert service.ended() == 0
    *kept, last = rows(database)
    assert last == "after the check"
    assert set(load.written()) <= set(kept)
    record_property("noticed after (s)", round(noticed, 2))


def test_a_deleted_log(project: Path, tmp_path: Path, record_property: Record) -> None:
    """`rm app.db-wal`: what is written from then on would be lost, so nothing is.

    A stop saves what the deleted file holds, as long as the service has it open.
    """
    database = tmp_path / "volume" / "app.db"
    database.parent.mkdir()
    variables = {"DATABASE_URL": f"sqlite:///{database}", "LOG_LEVEL": "WARNING"}
    with Service(project, tmp_path / "home", **variables).wait_until_healthy() as service:
        with Load(service.url, TEXT).running() as load:
            load.wait_for(201, 50, since=0)
            database.with_name("app.db-wal").unlink()
            noticed, message = wait_for_health(service, 503)
            told = time.monotonic()
            load.wait_for(503, 2 * WRITERS, since=told)
        service.terminate()
        assert service.ended() == 0, service.output()
    assert message == "the database's write-ahead log was deleted"
    assert load.statuses(told) == {"GET": {503}, "POST": {503}}
    require_nothing_lost(load, database, record_property)
    record_property("noticed after (s)", round(noticed, 2))

    with Service(project, tmp_path / "home", **variables).wait_until_healthy() as service:
        assert service.client.post("/notes", json={"text": "well again"}).status_code == 201


@pytest.mark.parametrize(
    ("database", "log", "message"),
    [
        pytest.param(b"", None, "the file is empty", id="empty"),
        pytest.param(b"", b"commits", "app.db is empty, and app.db-wal", id="empty with a log"),
        pytest.param(None, b"commits", "app.db is missing, and app.db-wal", id="a log alone"),
        pytest.param(bytes(8192), None, "the file is not a database", id="zeroes"),
        pytest.param(random.Random(1).randbytes(8192), None, "not a database", id="noise"),
    ],
)
def test_what_is_no_database_is_never_taken_for_one(
    project: Path, tmp_path: Path, database: bytes | None, log: bytes | None, message: str
) -> None:
    found = {"app.db": database, "app.db-wal": log}
    for name, content in found.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    require_refused(project, tmp_path, message)
    assert found == {name: contents(tmp_path / name) for name in found}


def contents(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def require_refused(project: Path, directory: Path, message: str, **variables: str) -> None:
    """One clear line, and the end."""
    with Service(project, directory, **variables) as service:
        assert service.ended() == 1
        assert message in service.output()
        assert "Traceback" not in service.output()
        assert service.output().count("\n") == 1


@as_root
def test_code_that_the_service_may_not_read_is_one_line(project: Path, tmp_path: Path) -> None:
    code = project / "app"
    mode = code.stat().st_mode
    code.chmod(0o750)
    try:
        require_refused(project, tmp_path, "cannot be read as uid 10001", APP_UID="10001")
    finally:
        code.chmod(mode)


def test_a_truncated_database_is_never_taken_for_one(project: Path, tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    with Service(project, tmp_path).wait_until_healthy() as service:
        for number in range(20):
            service.client.post("/notes", json={"text": f"{number} {'x' * 1900}"})
        service.terminate()
        assert service.ended() == 0
    whole = database.read_bytes()
    for part in (0.9, 0.5, 0.1):
        os.truncate(database, int(len(whole) * part))
        require_refused(project, tmp_path, "cannot be used")

    database.write_bytes(whole)
    with Service(project, tmp_path).wait_until_healthy() as service:
        assert len(service.client.get("/notes").json()) == 20


def test_a_killed_first_start_leaves_what_the_next_can_use(
    project: Path, tmp_path: Path, record_property: Record
) -> None:
    chance = random.Random(1)
    found: Counter[str] = Counter()
    for number in range(KILLED_STARTS):
        volume = tmp_path / f"volume-{number}"
        # a first start makes its database after about 0.4 s and has migrated it after 0.8 s
        with Service(project, volume) as service:
            time.sleep(chance.uniform(0.2, 1.2))
        database = volume / "app.db"
        found["none" if not database.exists() else revision(database)] += 1
        with Service(project, volume).wait_until_healthy() as service:
            assert service.client.post("/notes", json={"text": "kept"}).status_code == 201
    record_property("killed first starts, by what they left", dict(found))


def revision(database: Path) -> str:
    """What the database has been migrated to; it is one, however small."""
    assert database.stat().st_size > 0
    connection = sqlite3.connect(f"file:{database}?mode=rw", uri=True)
    try:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return "migrated" if tables != (0,) else "no table"
    finally:
        connection.close()


def test_the_log_says_why_once_for_all_workers(project: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Service(project, data, WORKERS="4") as service:
        service.wait_until_healthy()
        database = data / "app.db"
        for _ in range(2):
            kept = database.rename(data / "kept")
            ask_on_new_connections(service, 40, 503)
            kept.rename(database)
            ask_on_new_connections(service, 40, 200)
        reason = "ERROR   /health: database failed: the database file is missing"
        service.wait_for("INFO    /health: all is well again", 2)
        assert service.output().count(reason) == 2
        assert service.output().count("INFO    /health: all is well again") == 2


def ask_on_new_connections(service: Service, number: int, status: int) -> None:
    """Until each of the workers has most likely been asked."""
    for _ in range(number):
        assert httpx.get(f"{service.url}/health").status_code == status
