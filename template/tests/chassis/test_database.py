# Belongs to the template: your own tests go into tests/, beside this directory.
"""What the two engines promise: nothing lost, nobody locked out, no file made by accident."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.chassis import database as chassis
from app.chassis.backup import copy_database
from app.chassis.database import Database, DatabaseBusyError, Reader, Writer
from app.chassis.sqlite import open_database
from app.main import create_app
from app.settings import Settings

from .databases import make_database

ROUNDS = 15
THREADS = 8


@pytest.fixture
def database(settings: Settings) -> Database:
    make_database(settings.database_path)
    made = Database(settings.database_path)
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
        assert pragma(session, "journal_size_limit") == chassis.JOURNAL_SIZE_LIMIT
    with database.read() as session:
        assert pragma(session, "query_only") == 1
        assert pragma(session, "busy_timeout") == 5000


def test_synchronous_can_be_relaxed(database: Database) -> None:
    relaxed = Database(database.path, "NORMAL")
    with relaxed.write() as session:
        assert pragma(session, "synchronous") == 1
    relaxed.dispose()


def test_a_reader_cannot_write(database: Database) -> None:
    with database.read() as session, pytest.raises(OperationalError, match="readonly"):
        session.execute(text("UPDATE counter SET value = 1"))


def test_a_reader_sees_one_state(database: Database) -> None:
    with database.read() as session:
        before = session.execute(text("SELECT value FROM counter")).scalar_one()
        increment(database)
        assert session.execute(text("SELECT value FROM counter")).scalar_one() == before


def increment(database: Database) -> None:
    """Read, modify, write: what loses updates under the driver's own transactions."""
    with database.write() as session:
        value = session.execute(text("SELECT value FROM counter")).scalar_one()
        session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})


def increment_often(path: Path) -> None:
    database = Database(path)
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(increment, database) for _ in range(ROUNDS * THREADS)]:
            done.result()
    database.dispose()


@pytest.mark.parametrize("processes", [1, 2])
def test_no_update_is_lost(database: Database, processes: int) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=increment_often, args=(database.path,)) for _ in range(processes)
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
    monkeypatch.setattr(chassis, "BUSY_TIMEOUT", 0.2)
    holder = open_database(database.path)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusyError):
        increment(database)
    holder.close()
    increment(database)


def test_a_missing_file_is_not_made_anew(database: Database) -> None:
    kept = database.path.rename(database.path.with_name("kept"))

    with pytest.raises(OperationalError, match="missing"):
        increment(database)
    assert not database.path.exists()

    kept.rename(database.path)
    increment(database)


def test_a_replaced_file_is_left_alone(database: Database, tmp_path: Path) -> None:
    """Its predecessor's log lies beside it: to open it would be to damage it."""
    copy, kept = tmp_path / "copy.db", tmp_path / "kept.db"
    copy_database(database.path, copy)
    content = copy.read_bytes()
    increment(database)
    os.link(database.path, kept)
    copy.replace(database.path)

    for engine in (database.reader_engine, database.writer_engine):
        with pytest.raises(OperationalError, match="replaced"), engine.connect() as connection:
            connection.execute(text("SELECT value FROM counter"))
    assert database.path.read_bytes() == content

    kept.replace(database.path)
    increment(database)
    with database.read() as session:
        assert session.execute(text("SELECT value FROM counter")).scalar_one() == 2


def test_a_deleted_log_is_noticed_and_a_stop_saves_what_was_in_it(database: Database) -> None:
    increment(database)
    (database.path.with_name("app.db-wal")).unlink()

    for engine in (database.reader_engine, database.writer_engine):
        with pytest.raises(OperationalError, match="log was deleted"), engine.connect() as again:
            again.execute(text("SELECT value FROM counter"))
    database.dispose()
    increment(database)
    with database.read() as session:
        assert session.execute(text("SELECT value FROM counter")).scalar_one() == 2


def test_a_writer_that_is_opened_anew_may_have_a_new_log(database: Database) -> None:
    for _ in range(2):
        with database.writer_engine.connect() as connection:
            connection.execute(text("UPDATE counter SET value = value + 1"))
            connection.commit()
            connection.invalidate()
    increment(database)


def test_a_commit_into_a_deleted_file_is_no_success(database: Database) -> None:
    def delete() -> None:
        with database.write() as session:
            session.execute(text("UPDATE counter SET value = 1"))
            database.path.unlink()

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


def test_a_failed_route_leaves_nothing_behind(settings: Settings, database: Database) -> None:
    with make_client(settings) as client:
        assert client.post("/fail").status_code == 500
        assert client.get("/counter").json() == 0
        assert client.post("/increment").status_code == 200


def test_an_answer_comes_after_the_commit(settings: Settings, database: Database) -> None:
    with make_client(settings) as client:
        for expected in range(1, 20):
            client.post("/increment")
            connection = open_database(database.path)
            assert connection.execute("SELECT value FROM counter").fetchone() == (expected,)
            connection.close()


def test_a_busy_database_is_a_503(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chassis, "BUSY_TIMEOUT", 0.2)
    holder = open_database(database.path)
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
    monkeypatch.setattr(chassis, "BUSY_TIMEOUT", 1.0)
    holder = open_database(database.path)
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
        database.path.unlink()
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
