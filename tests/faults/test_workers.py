"""Workers that are killed, hang or run out of memory, and every way to end the service."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx2 as httpx
import pexpect
import pytest

from support import load_json
from support.service import DEADLINE, FORMS, Service, Writers, free_port, router_added

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

KILLS = 3

MEMORY_KIB = 1024**2

HANG_LIMIT = 30 + 15
"""gunicorn's timeout, and the time to notice it and to start another worker."""

FAULTS = """
import asyncio
import os
import time

from fastapi import APIRouter
from sqlalchemy import text

from app.chassis.database import Writer

router = APIRouter(prefix="/faults")


@router.get("/pid")
async def pid() -> int:
    return os.getpid()


@router.get("/hang")
async def hang() -> None:
    print("under way")
    time.sleep(600)


@router.get("/hang-writing")
async def hang_writing(session: Writer) -> None:
    session.execute(text("INSERT INTO notes (text, created_at) VALUES ('hung', '2026-01-01')"))
    print("under way")
    time.sleep(600)


@router.get("/slow")
async def slow() -> str:
    print("under way")
    await asyncio.sleep(3)
    return "finished"


@router.get("/version")
async def version() -> str:
    return "as it was"


@router.post("/clock")
async def set_the_clock_back() -> int:
    real = time.time
    time.time = lambda: real() - 3600
    return os.getpid()


@router.post("/eat")
def eat() -> None:
    blocks = []
    while True:
        blocks.append(bytearray(16 * 1024**2))
"""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed()
    with router_added(project, "faults", FAULTS):
        yield project


def workers(service: Service) -> list[int]:
    """The processes that the service's first one has started."""
    pid = service.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process does anything; one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def seconds_until(condition: Callable[[], object], limit: float = DEADLINE) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + limit
        time.sleep(0.02)
    return time.monotonic() - start


def fresh_answer(service: Service, path: str, timeout: float = 1.0) -> httpx.Response | None:
    """The answer to a new connection, which any worker may take; None without one."""
    with suppress(httpx.TransportError):
        return httpx.get(f"{service.url}{path}", timeout=timeout)
    return None


def serving(service: Service, timeout: float = 1.0) -> int | None:
    """The worker that answers a new connection."""
    answer = fresh_answer(service, "/faults/pid", timeout)
    return answer.json() if answer is not None and answer.status_code == 200 else None


def seconds_until_another_serves(service: Service, before: list[int]) -> float:
    return seconds_until(lambda: serving(service) not in {None, *before})


def require_all(data: Path, writers: Writers) -> list[str]:
    """The notes of a sound database, in which nothing acknowledged is missing."""
    with closing(sqlite3.connect(data / "app.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = [text for (text,) in connection.execute("SELECT text FROM notes")]
    assert set(writers.texts()) <= set(found)
    return found


def answered(writers: Writers) -> set[int]:
    """The failures that were an answer of the service's, rather than none."""
    return {int(name) for name in writers.failures if name.isdigit()}


def require_free(project: Path, data: Path) -> None:
    """No process holds the database any more: a command that needs it is not refused."""
    with Service(project, data, [*FORMS["exec"], "migrate"]) as command:
        assert command.ended() == 0, command.output()


@pytest.mark.parametrize("number", [1, 2])
def test_a_killed_worker_is_replaced(
    project: Path, tmp_path: Path, record_property: Record, number: int
) -> None:
    data = tmp_path / "data"
    replaced = []
    with (
        Service(project, data, WORKERS=str(number)).wait_until_healthy() as service,
        Writers(service.url) as writers,
    ):
        for _ in range(KILLS):
            writers.wait_for_more(20)
            before = workers(service)
            assert len(before) == number
            os.kill(before[0], signal.SIGKILL)
            replaced.append(seconds_until_another_serves(service, before))
        writers.wait_for_more(20)
        writers.stop()
        service.terminate()
        assert service.ended() == 0
    assert service.output().count("was sent SIGKILL") == KILLS
    require_all(data, writers)
    assert not answered(writers)
    record_property("seconds until a new worker served", spread(replaced))
    record_property("longest time without an acknowledgement", f"{writers.longest_silence():.1f} s")
    record_property("acknowledged", len(writers.acknowledged))
    record_property(f"failed requests in {KILLS} kills", dict(writers.failures))


def spread(seconds: list[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f}"


HUNG = {
    "its only worker hung": (1, "/faults/hang"),
    "one of two hung": (2, "/faults/hang"),
    "one of two hung in a transaction": (2, "/faults/hang-writing"),
}


def test_a_hung_worker_is_replaced_and_holds_up_no_stop(
    project: Path, tmp_path: Path, record_property: Record
) -> None:
    """All at once, because they mostly wait."""
    with ThreadPoolExecutor() as pool:
        runs = {
            name: pool.submit(hang_one, project, tmp_path / name, *case)
            for name, case in HUNG.items()
        }
        runs["stopped while hung"] = pool.submit(stop_while_hung, project, tmp_path / "stopped")
    for name, run in runs.items():
        for figure, value in run.result().items():
            record_property(f"{name}: {figure}", value)


def hang_one(project: Path, data: Path, number: int, path: str) -> dict[str, object]:
    """Hang one of so many workers under a write load, and see that gunicorn replaces it."""
    with (
        Service(project, data, WORKERS=str(number)).wait_until_healthy() as service,
        Writers(service.url) as writers,
    ):
        writers.wait_for_more(50)
        before = workers(service)
        hanging = threading.Thread(target=fresh_answer, args=(service, path, DEADLINE))
        hanging.start()
        service.wait_for("under way")
        start = time.monotonic()
        reads = 0
        while all(map(is_running, before)):
            assert time.monotonic() < start + HANG_LIMIT, service.output()
            if number > 1:
                # whoever connects meets the worker that does not hang
                answer = fresh_answer(service, "/notes?limit=1", timeout=10)
                assert answer is not None
                assert answer.status_code == 200
                reads += 1
            time.sleep(0.1)
        noticed = time.monotonic() - start
        seconds_until_another_serves(service, before)
        replaced = time.monotonic() - start
        assert replaced < HANG_LIMIT
        hanging.join()
        writers.wait_for_more(50)
        writers.stop()
        service.terminate()
        assert service.ended() == 0
    assert service.output().count("WORKER TIMEOUT") == 1
    assert "hung" not in require_all(data, writers)
    # a worker that hangs in a transaction keeps the write lock, and the other one says so
    assert answered(writers) <= {503}
    return {
        "seconds until it was killed": f"{noticed:.1f}",
        "seconds until a new one served": f"{replaced:.1f}",
        "reads by the other meanwhile": reads,
        "longest time without an acknowledgement": f"{writers.longest_silence():.1f} s",
        "acknowledged": len(writers.acknowledged),
        "failed requests": dict(writers.failures),
    }


def stop_while_hung(project: Path, data: Path) -> dict[str, object]:
    """Stop a service one of whose workers hangs in a transaction: in time, and with 0."""
    with (
        Service(project, data, WORKERS="2").wait_until_healthy() as service,
        Writers(service.url) as writers,
    ):
        writers.wait_for_more(50)
        hanging = threading.Thread(
            target=fresh_answer, args=(service, "/faults/hang-writing", DEADLINE)
        )
        hanging.start()
        service.wait_for("under way")
        start = time.monotonic()
        service.terminate()
        assert service.ended() == 0
        seconds = time.monotonic() - start
        hanging.join()
    assert seconds < load_json(project / "railway.json")["deploy"]["drainingSeconds"]
    assert "hung" not in require_all(data, writers)
    require_free(project, data)
    return {"seconds from SIGTERM to the end": f"{seconds:.1f}"}


def test_a_request_that_takes_all_memory_fails_alone(
    project: Path, tmp_path: Path, record_property: Record
) -> None:
    """The limit is on the address space: what a kill for memory does is tested as a kill."""
    data = tmp_path / "data"
    limited = ["bash", "-c", f"ulimit -v {MEMORY_KIB}; exec python -m app"]
    statuses = []
    with (
        Service(project, data, limited).wait_until_healthy() as service,
        Writers(service.url) as writers,
    ):
        for _ in range(3):
            writers.wait_for_more(20)
            statuses.append(service.client.post("/faults/eat").status_code)
        writers.wait_for_more(20)
        writers.stop()
        service.wait_until_healthy()
        service.terminate()
        assert service.ended() == 0
    assert statuses == [500] * 3
    assert "MemoryError" in service.output()
    require_all(data, writers)
    record_property("acknowledged", len(writers.acknowledged))
    record_property("failed requests beside it", dict(writers.failures))


def test_no_worker_outlives_its_parent(
    project: Path, tmp_path: Path, record_property: Record
) -> None:
    data = tmp_path / "data"
    answers: list[httpx.Response | None] = []
    with (
        Service(project, data, WORKERS="2").wait_until_healthy() as service,
        Writers(service.url) as writers,
    ):
        writers.wait_for_more(20)
        left = workers(service)
        assert len(left) == 2
        slow = threading.Thread(
            target=lambda: answers.append(fresh_answer(service, "/faults/slow", DEADLINE))
        )
        slow.start()
        service.wait_for("under way")
        service.process.kill()
        service.process.wait()
        seconds = seconds_until(lambda: not any(map(is_running, left)))
        writers.stop()
        slow.join()
    record_property("seconds until the workers had ended", f"{seconds:.1f}")
    # they end as they would on SIGTERM
    assert [answer and answer.json() for answer in answers] == ["finished"]
    require_free(project, data)
    require_all(data, writers)
    with Service(project, data, port=service.port, LOCK_TIMEOUT="1").wait_until_healthy() as again:
        assert set(writers.texts()) <= set(again.notes())


@pytest.mark.parametrize(
    ("signals", "group"),
    [
        pytest.param([signal.SIGTERM] * 3, False, id="SIGTERM three times"),
        pytest.param([signal.SIGTERM] * 3, True, id="SIGTERM to all, three times"),
        pytest.param([signal.SIGINT], False, id="SIGINT"),
        pytest.param([signal.SIGINT], True, id="SIGINT to all"),
    ],
)
def test_signals_again_and_again_do_not_cut_a_stop_short(
    project: Path, tmp_path: Path, signals: list[signal.Signals], group: bool
) -> None:
    data = tmp_path / "data"
    with Service(project, data, WORKERS="2") as service:
        # healthy is who has one worker; the other may not have heard of signals yet
        seconds_until(lambda: service.output().count("Application startup complete") == 2)
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(fresh_answer, service, "/faults/slow", DEADLINE)
            service.wait_for("under way")
            for number in signals:
                if group:
                    os.killpg(service.process.pid, number)
                else:
                    service.process.send_signal(number)
                time.sleep(0.3)
            answer = slow.result()
        assert service.ended() == 0
        assert answer is not None
        assert answer.json() == "finished"
        # of themselves, not killed at their deadline
        assert service.output().count("Application shutdown complete") == 2
        assert "Traceback" not in service.output()
        require_free(project, data)


FOREGROUND = {"start": [], "serve": ["serve"], "serve --reload": ["serve", "--reload"]}


@contextmanager
def terminal(
    project: Path, data: Path, *arguments: str, until: str = "Application startup complete"
) -> Iterator[tuple[pexpect.spawn, str]]:
    """The service in the foreground of a terminal once it has said so much, and its address."""
    data.mkdir(exist_ok=True)
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": f"sqlite:///{data}/app.db",
        "PORT": str(port),
        "TERM": "xterm",
    }
    python = str(project / ".venv" / "bin" / "python")
    child = pexpect.spawn(
        python,
        ["-m", "app", *arguments],
        cwd=str(project),
        env=environment,
        encoding="utf-8",
        timeout=DEADLINE,
    )
    try:
        child.expect(until)
        yield child, f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.close(force=True)


@pytest.mark.parametrize("form", FOREGROUND)
def test_ctrl_c_ends_it(project: Path, tmp_path: Path, form: str) -> None:
    data = tmp_path / "data"
    with terminal(project, data, *FOREGROUND[form]) as (child, url):
        assert httpx.post(f"{url}/notes", json={"text": form}).status_code == 201
        child.sendintr()
        output = child.read()
        child.wait()
        assert child.exitstatus == 0, output
        assert "Traceback" not in output
        assert "Application shutdown complete" in output, output
        require_free(project, data)


def test_a_second_ctrl_c_does_not_wait_for_requests(project: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with terminal(project, data) as (child, url), ThreadPoolExecutor() as pool:
        pool.submit(httpx.get, f"{url}/faults/slow")
        child.expect("under way")
        child.sendintr()
        child.expect("Waiting for connections to close")
        child.sendintr()
        seconds = seconds_until(lambda: not child.isalive())
        output = child.read()
        assert child.exitstatus == 0, output
        assert "Traceback" not in output
        assert seconds < 2.5
        require_free(project, data)


def test_ctrl_c_ends_the_wait_for_another_service(project: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    waiting = "Waiting for the service"
    with (
        Service(project, data).wait_until_healthy() as service,
        terminal(project, data, until=waiting) as (child, _),
    ):
        child.sendintr()
        output = child.read()
        child.wait()
        assert child.exitstatus == 130, output
        assert "Traceback" not in output
        assert service.client.get("/health").status_code == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a namespace")
def test_sigterm_ends_the_wait_of_process_1(project: Path, tmp_path: Path) -> None:
    """As in a container: the kernel keeps signals that are not handled from process 1."""
    data = tmp_path / "data"
    container = ["unshare", "--pid", "--fork", "--kill-child", *FORMS["exec"]]
    with (
        Service(project, data).wait_until_healthy() as service,
        Service(project, data, container) as waiting,
    ):
        waiting.wait_for("Waiting for the service")
        (first,) = workers(waiting)
        os.kill(first, signal.SIGTERM)
        assert waiting.process.wait(10) == 128 + signal.SIGTERM
        assert "Traceback" not in waiting.output()
        assert service.client.get("/health").status_code == 200


def test_reload_serves_what_was_edited(project: Path, tmp_path: Path) -> None:
    module = project / "app" / "api" / "faults.py"
    before = module.read_text(encoding="utf-8")
    with terminal(project, tmp_path / "data", "serve", "--reload") as (child, url):
        assert httpx.get(f"{url}/faults/version").json() == "as it was"
        try:
            module.write_text(before.replace("as it was", "edited"), encoding="utf-8")
            child.expect("Application startup complete")
            assert httpx.get(f"{url}/faults/version").json() == "edited"
        finally:
            module.write_text(before, encoding="utf-8")
        child.expect("Application startup complete")
        assert httpx.get(f"{url}/faults/version").json() == "as it was"
        child.sendintr()
        assert "Traceback" not in child.read()
        child.wait()
        assert child.exitstatus == 0
        require_free(project, tmp_path / "data")


def test_a_clock_that_is_set_back_kills_no_worker(project: Path, tmp_path: Path) -> None:
    with Service(project, tmp_path / "data").wait_until_healthy() as service:
        before: int = service.client.post("/faults/clock").json()
        time.sleep(HANG_LIMIT)
        assert serving(service) == before
        assert "WORKER TIMEOUT" not in service.output()


REVISION = """
from alembic import op

revision = "added"
down_revision = "0001"


def upgrade() -> None:
    op.execute("CREATE TABLE added (id INTEGER PRIMARY KEY)")


def downgrade() -> None:
    op.execute("DROP TABLE added")
"""


def test_reload_migrates(project: Path, tmp_path: Path) -> None:
    revision = project / "migrations" / "versions" / "added.py"
    data = tmp_path / "data"
    with terminal(project, data, "serve", "--reload") as (child, _):
        try:
            revision.write_text(REVISION.replace("CREATE", "CRATE"), encoding="utf-8")
            child.expect("Correct the revision in migrations/versions")
            revision.write_text(REVISION, encoding="utf-8")
            child.expect("Database migrated to added")
            child.expect("Application startup complete")
        finally:
            revision.unlink()
        with closing(sqlite3.connect(data / "app.db")) as connection:
            assert connection.execute("SELECT count(*) FROM added").fetchone() == (0,)
        child.sendintr()
        child.wait()
