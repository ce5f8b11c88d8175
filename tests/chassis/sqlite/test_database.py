"""What the two engines promise: nothing lost, nobody locked out, no file made by accident."""

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.chassis import assembly
from app.chassis.database import (
    Database,
    DatabaseBusyError,
    DatabaseUnavailableError,
    Reader,
    Writer,
)
from app.chassis.sqlite import engines, writer
from app.chassis.sqlite.backup import copy_database
from app.chassis.sqlite.driver import open_database
from app.main import create_app
from app.settings import Settings

from .databases import make_database, open_at, path_of

ROUNDS = 15
THREADS = 8


@pytest.fixture
def database(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Database:
    # longer than a busy machine takes for a few routes
    monkeypatch.setattr(writer, "GROUP_SECONDS", 0.5)
    make_database(settings)
    made = assembly.engine.open(settings)
    with made.write() as session:
        session.execute(text("CREATE TABLE counter (value INTEGER)"))
        session.execute(text("INSERT INTO counter VALUES (0)"))
    return made


def pragma(session: Session, name: str) -> object:
    return session.execute(text(f"PRAGMA {name}")).scalar_one()


def test_the_pragmas_are_in_force(database: Database) -> None:
    with database.write() as session:
        assert pragma(session, "journal_mode") == "wal"
        assert pragma(session, "synchronous") == 2
        assert pragma(session, "foreign_keys") == 1
        assert pragma(session, "journal_size_limit") == engines.JOURNAL_SIZE_LIMIT
    with database.read() as session:
        assert pragma(session, "query_only") == 1
        assert pragma(session, "busy_timeout") == 5000


def test_synchronous_can_be_relaxed(database: Database) -> None:
    relaxed = open_at(path_of(database), "NORMAL")
    with relaxed.write() as session:
        assert pragma(session, "synchronous") == 1
    relaxed.dispose()


def test_a_reader_cannot_write(database: Database) -> None:
    with database.read() as session, pytest.raises(OperationalError, match="readonly"):
        session.execute(text("UPDATE counter SET value = 1"))


def increment(database: Database) -> None:
    """Read, modify, write: what loses updates under the driver's own transactions."""
    with database.write() as session:
        value = session.execute(text("SELECT value FROM counter")).scalar_one()
        session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})


def increment_often(path: Path) -> None:
    database = open_at(path)
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(increment, database) for _ in range(ROUNDS * THREADS)]:
            done.result()
    database.dispose()


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_no_update_is_lost(database: Database, processes: int) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=increment_often, args=(path_of(database),)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0] * processes
    with database.read() as session:
        total = session.execute(text("SELECT value FROM counter")).scalar_one()
    assert total == processes * ROUNDS * THREADS


def test_waiting_for_the_write_lock_is_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0.2)
    holder = open_database(path_of(database))
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusyError):
        increment(database)
    holder.close()
    increment(database)


def test_a_session_that_none_is_left_for_is_told_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0.1)
    few = open_at(path_of(database))

    def keep(count: int) -> None:
        with ExitStack() as kept:
            for _ in range(count):
                kept.enter_context(few.read()).execute(text("SELECT 1"))

    keep(2 * engines.READERS)
    with pytest.raises(DatabaseBusyError):
        keep(2 * engines.READERS + 1)
    with few.write() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(DatabaseBusyError):
            increment(few)
    few.dispose()


def test_only_what_the_database_itself_fails_at_is_unavailable(database: Database) -> None:
    with database.read() as session, pytest.raises(OperationalError) as wrong:
        session.execute(text("SELECT value FROM nowhere"))
    assert not isinstance(wrong.value, DatabaseUnavailableError)
    database.dispose()
    path_of(database).write_bytes(b"no database at all" * 100)
    with open_at(path_of(database)).read() as session, pytest.raises(DatabaseUnavailableError):
        session.execute(text("SELECT value FROM counter"))


def test_a_missing_file_is_not_made_anew(database: Database) -> None:
    kept = path_of(database).rename(path_of(database).with_name("kept"))

    with pytest.raises(OperationalError, match="missing"):
        increment(database)
    assert not path_of(database).exists()

    kept.rename(path_of(database))
    increment(database)


def test_a_replaced_file_is_left_alone(database: Database, tmp_path: Path) -> None:
    """Its predecessor's log lies beside it: to open it would be to damage it."""
    copy, kept = tmp_path / "copy.db", tmp_path / "kept.db"
    copy_database(path_of(database), copy)
    content = copy.read_bytes()
    increment(database)
    os.link(path_of(database), kept)
    copy.replace(path_of(database))

    for engine in (database.readers.engine, database.writer.engine):
        with pytest.raises(OperationalError, match="replaced"), engine.connect() as connection:
            connection.execute(text("SELECT value FROM counter"))
    assert path_of(database).read_bytes() == content

    kept.replace(path_of(database))
    increment(database)
    with database.read() as session:
        assert session.execute(text("SELECT value FROM counter")).scalar_one() == 2


def test_a_deleted_log_is_noticed_and_a_stop_saves_what_was_in_it(database: Database) -> None:
    increment(database)
    (path_of(database).with_name("app.db-wal")).unlink()

    for engine in (database.readers.engine, database.writer.engine):
        with pytest.raises(OperationalError, match="log was deleted"), engine.connect() as again:
            again.execute(text("SELECT value FROM counter"))
    database.dispose()
    increment(database)
    with database.read() as session:
        assert session.execute(text("SELECT value FROM counter")).scalar_one() == 2


def test_a_writer_that_is_opened_anew_may_have_a_new_log(database: Database) -> None:
    for _ in range(2):
        with database.writer.engine.connect() as connection:
            connection.execute(text("UPDATE counter SET value = value + 1"))
            connection.commit()
            connection.invalidate()
    increment(database)


def test_a_commit_into_a_deleted_file_is_no_success(database: Database) -> None:
    def delete() -> None:
        with database.write() as session:
            session.execute(text("UPDATE counter SET value = 1"))
            path_of(database).unlink()

    with pytest.raises(OperationalError, match="missing"):
        delete()


def make_client(settings: Settings) -> TestClient:
    app: FastAPI = create_app(settings)

    @app.post("/delete")
    def delete(session: Writer) -> None:
        session.execute(text("UPDATE counter SET value = 1000"))
        settings.database_path.unlink()

    @app.post("/increment")
    def increment_route(session: Writer) -> int:
        value: int = session.execute(text("SELECT value FROM counter")).scalar_one()
        session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})
        return value

    @app.post("/fail")
    def fail(session: Writer) -> None:
        session.execute(text("UPDATE counter SET value = 1000"))
        raise RuntimeError("after the write")

    @app.get("/slow")
    def slow(session: Reader) -> int:
        value: int = session.execute(text("SELECT value FROM counter")).scalar_one()
        time.sleep(0.02)
        return value

    @app.get("/counter")
    def counter(session: Reader) -> int:
        value: int = session.execute(text("SELECT value FROM counter")).scalar_one()
        return value

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("call", ["GET /slow", "POST /increment"])
def test_more_clients_than_threads_never_block_each_other(
    settings: Settings, database: Database, call: str
) -> None:
    # routes that wait in threads, of which there are 40, would keep them from those that
    # need one to finish
    with make_client(settings) as client, ThreadPoolExecutor(64) as pool:
        answers = pool.map(lambda _: client.request(*call.split()).status_code, range(128))
        assert list(answers) == [200] * 128
        assert client.get("/counter").json() == (128 if "POST" in call else 0)


def test_an_answer_comes_after_the_commit(settings: Settings, database: Database) -> None:
    with make_client(settings) as client:
        for expected in range(1, 20):
            client.post("/increment")
            connection = open_database(path_of(database))
            assert connection.execute("SELECT value FROM counter").fetchone() == (expected,)
            connection.close()


def test_a_busy_database_is_a_503(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0.2)
    holder = open_database(path_of(database))
    holder.execute("BEGIN IMMEDIATE")
    with make_client(settings) as client:
        refused = client.post("/increment")
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert client.get("/counter").status_code == 200
        holder.execute("ROLLBACK")
        assert client.post("/increment").status_code == 200
    holder.close()


def test_one_wait_covers_the_turn_and_the_lock(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a writer whose turn comes when the one before has given up would wait as long again
    monkeypatch.setattr(engines, "BUSY_TIMEOUT", 1.0)
    holder = open_database(path_of(database))
    holder.execute("BEGIN IMMEDIATE")

    def waited(after: float) -> float:
        time.sleep(after)
        began = time.monotonic()
        assert client.post("/increment").status_code == 503
        return time.monotonic() - began

    with make_client(settings) as client, ThreadPoolExecutor(4) as pool:
        assert max(pool.map(waited, (0.0, 0.2, 0.4, 0.6))) < 1.5
    holder.close()


def test_a_commit_into_a_deleted_file_is_a_503(settings: Settings, database: Database) -> None:
    with make_client(settings) as client:
        assert client.post("/delete").status_code == 503


def test_a_deleted_database_is_a_503_without_the_drivers_text(
    settings: Settings, database: Database
) -> None:
    with make_client(settings) as client:
        path_of(database).unlink()
        for answer in (client.post("/increment"), client.get("/counter")):
            assert answer.status_code == 503
            assert answer.json()["detail"] == "The database is unavailable"


def test_writers_of_one_process_take_turns(database: Database) -> None:
    inside = threading.Event()

    def hold() -> None:
        with database.write() as session:
            session.execute(text("SELECT 1"))
            inside.set()

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(5)
    increment(database)
    thread.join()


@pytest.fixture
def commits(database: Database) -> list[float]:
    made: list[float] = []
    event.listen(database.writer.engine, "commit", lambda _: made.append(time.monotonic()))
    return made


def write_at_once(database: Database, *functions: Callable[[Session], object]) -> list[object]:
    """What each returned or raised; they have waited for the writer together."""

    async def write() -> list[object]:
        async with database.writer.lend():
            tasks = [asyncio.create_task(database.run_writing(each)) for each in functions]
            await asyncio.sleep(0.01)
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        return asyncio.run(write())
    finally:
        database.dispose()


def add(number: int) -> Callable[[Session], int]:
    def adding(session: Session) -> int:
        session.execute(text("UPDATE counter SET value = value + :number"), {"number": number})
        return number

    return adding


def value(database: Database) -> int:
    with database.read() as session:
        found: int = session.execute(text("SELECT value FROM counter")).scalar_one()
    return found


def test_writers_that_wait_share_a_commit(database: Database, commits: list[float]) -> None:
    assert write_at_once(database, *map(add, range(10))) == list(range(10))
    assert value(database) == 45
    assert len(commits) == 1


def test_a_failed_writer_undoes_only_its_own(database: Database, commits: list[float]) -> None:
    def fail(session: Session) -> None:
        add(100)(session)
        raise RuntimeError("after the write")

    def refuse(session: Session) -> None:
        session.execute(text("INSERT INTO nowhere VALUES (1)"))

    one, failed, refused, ten = write_at_once(database, add(1), fail, refuse, add(10))
    assert (one, ten) == (1, 10)
    assert isinstance(failed, RuntimeError)
    assert isinstance(refused, OperationalError)
    assert value(database) == 11
    assert len(commits) == 1


def test_a_writer_may_commit_in_between(database: Database) -> None:
    def twice(session: Session) -> None:
        add(1)(session)
        session.commit()
        add(10)(session)
        session.rollback()
        add(100)(session)

    assert write_at_once(database, add(1000), twice, add(10000)) == [1000, None, 10000]
    assert value(database) == 11101


def test_what_sqlite_has_undone_is_no_success(database: Database) -> None:
    def fill(session: Session) -> None:
        # ends the transaction as a full disk does (https://sqlite.org/lang_transaction.html)
        session.execute(text(f"PRAGMA max_page_count={pragma(session, 'page_count')}"))
        session.execute(text("INSERT INTO counter VALUES (zeroblob(1000000))"))

    one, full, ten = write_at_once(database, add(1), fill, add(10))
    for error in (one, full):
        assert isinstance(error, DatabaseUnavailableError)
        assert "full" in str(error)
    assert ten == 10
    assert value(database) == 10


def test_a_route_that_ends_the_transaction_fails_all_in_it(database: Database) -> None:
    def end(session: Session) -> None:
        driver: Any = session.connection().connection.dbapi_connection
        driver.execute("ROLLBACK")

    one, ended, ten = write_at_once(database, add(1), end, add(10))
    assert isinstance(one, Exception)
    assert isinstance(ended, Exception)
    assert ten == 10
    assert value(database) == 10


def test_a_group_whose_file_is_gone_is_no_success(database: Database) -> None:
    def delete(_: Session) -> None:
        path_of(database).unlink()

    answers = write_at_once(database, add(1), delete, add(10))
    assert [type(answer) for answer in answers] == [DatabaseUnavailableError] * 3


def test_a_slow_writer_shares_its_commit_only_with_those_before(
    database: Database, commits: list[float]
) -> None:
    def slow(session: Session) -> None:
        add(1)(session)
        time.sleep(2 * writer.GROUP_SECONDS)

    assert write_at_once(database, add(1), slow, add(10), add(10)) == [1, None, 10, 10]
    assert len(commits) == 2


def test_a_group_without_the_lock_gives_up_one_by_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0.3)
    holder = open_database(path_of(database))
    threading.Timer(0.5, holder.execute, ["ROLLBACK"]).start()

    async def write() -> list[object]:
        async with database.writer.lend():
            holder.execute("BEGIN IMMEDIATE")
            first = [asyncio.create_task(database.run_writing(add(1))) for _ in range(2)]
            await asyncio.sleep(0.2)
            monkeypatch.setattr(engines, "BUSY_TIMEOUT", 5.0)
            later = asyncio.create_task(database.run_writing(add(10)))
            await asyncio.sleep(0)
        return await asyncio.gather(*first, later, return_exceptions=True)

    one, other, later = asyncio.run(write())
    assert isinstance(one, DatabaseBusyError)
    assert isinstance(other, DatabaseBusyError)
    assert later == 10
    assert value(database) == 10
    holder.close()


def test_a_group_that_waited_for_the_lock_is_still_one(
    database: Database, commits: list[float]
) -> None:
    holder = open_database(path_of(database))

    async def write() -> list[int]:
        async with database.writer.lend():
            holder.execute("BEGIN IMMEDIATE")
            tasks = [asyncio.create_task(database.run_writing(add(1))) for _ in range(5)]
            await asyncio.sleep(0.01)
        await asyncio.sleep(3 * writer.GROUP_SECONDS)
        holder.execute("ROLLBACK")
        return await asyncio.gather(*tasks)

    assert asyncio.run(write()) == [1] * 5
    assert value(database) == 5
    assert len(commits) == 1
    holder.close()


def test_a_commit_on_a_file_system_that_turned_read_only_is_a_503(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(os.statvfs(path_of(database)))
    found[8] |= os.ST_RDONLY  # f_flag
    with make_client(settings) as client:
        assert client.post("/increment").status_code == 200
        monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(found))
        assert client.post("/increment").status_code == 503
        assert client.get("/counter").status_code == 200
