"""What readers and writers promise where other processes write too."""

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from datetime import time as day_time
from io import BytesIO
from typing import Annotated, Any

import anyio
import anyio.from_thread
import psycopg
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Response, UploadFile
from fastapi.testclient import TestClient
from sqlalchemy import Column, DateTime, Integer, MetaData, String, Table, Time, func, select, text
from sqlalchemy.exc import IntegrityError, InternalError, OperationalError, StatementError
from sqlalchemy.orm import Session

from app.chassis import (
    Database,
    DatabaseBusyError,
    DatabaseUnavailableError,
    Degraded,
    Reader,
    Router,
    Writer,
    get_database,
    postgresql,
)
from app.chassis.application import add_error_handlers
from app.chassis.http import remember
from app.chassis.postgresql import engine, threads
from app.chassis.postgresql.local import Server
from app.chassis.sessions import SessionEndedError
from app.settings import Settings

TASKS = 16
ROUNDS = 40


@pytest.fixture
def other(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Another process, which always writes in its own transactions."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE counter (id bigint PRIMARY KEY, value bigint NOT NULL)")
        connection.execute("INSERT INTO counter VALUES (1, 0), (2, 0)")
        yield connection


@pytest.fixture
def database(settings: Settings, other: object) -> Iterator[Database]:
    made = postgresql.open(settings)
    yield made
    made.dispose()


def run(database: Database, function: Callable[[Session], Any]) -> Any:
    return asyncio.run(database.run_writing(function))


def read(database: Database, function: Callable[[Session], Any]) -> Any:
    return asyncio.run(database.run_reading(function))


def value(session: Session, row: int = 1) -> int:
    found: int = session.execute(
        text("SELECT value FROM counter WHERE id = :id"), {"id": row}
    ).scalar_one()
    return found


def put(session: Session, number: int, row: int = 1) -> None:
    statement = text("UPDATE counter SET value = :value WHERE id = :id")
    session.execute(statement, {"value": number, "id": row})


def increment(session: Session) -> int:
    """Read, modify, write: what loses updates at the default isolation."""
    before = value(session)
    put(session, before + 1)
    return before


async def increment_often(database: Database, times: int) -> None:
    for _ in range(times):
        await database.run_writing(increment)


def test_no_update_is_lost(settings: Settings, database: Database) -> None:
    second = postgresql.open(settings)

    async def everybody() -> None:
        async with anyio.create_task_group() as group:
            for number in range(TASKS):
                group.start_soon(increment_often, (database, second)[number % 2], ROUNDS)

    asyncio.run(everybody())
    second.dispose()
    assert read(database, value) == TASKS * ROUNDS


def test_a_long_transaction_among_short_ones_gets_through(database: Database) -> None:
    tries: list[int] = []

    def take_long(session: Session) -> None:
        tries.append(1)
        before = value(session)
        time.sleep(0.1)
        put(session, before + 1)

    async def race() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(increment_often, database, 1_000_000)
            await asyncio.sleep(0.1)
            await database.run_writing(take_long)
            group.cancel_scope.cancel()

    asyncio.run(race())
    assert len(tries) <= engine.LOSSES + 1


def lose_at_a_statement(other: psycopg.Connection[Any], session: Session) -> None:
    before = value(session)
    other.execute("UPDATE counter SET value = value + 1 WHERE id = 1")
    put(session, before + 10)


def lose_at_the_commit(other: psycopg.Connection[Any], session: Session) -> None:
    put(session, value(session, 2) + 10)
    with psycopg.connect(other.info.dsn) as third:
        third.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        third.execute(
            "UPDATE counter SET value = (SELECT value + 1 FROM counter WHERE id = 1) WHERE id = 2"
        )


LOSSES = pytest.mark.parametrize("lose", [lose_at_a_statement, lose_at_the_commit])


@LOSSES
def test_a_function_that_has_lost_is_called_again_with_a_new_session(
    database: Database, other: psycopg.Connection[Any], lose: Any
) -> None:
    sessions: list[Session] = []

    def write(session: Session) -> str:
        sessions.append(session)
        if len(sessions) < 3:
            lose(other, session)
        else:
            put(session, value(session) + 100)
        return "done"

    assert run(database, write) == "done"
    first, second, third = sessions
    assert first is not second is not third
    with pytest.raises(SessionEndedError):
        first.execute(text("SELECT 1"))
    # nothing of the lost tries is there, and everything of the other process
    assert read(database, value) == (102 if lose is lose_at_a_statement else 100)


@pytest.mark.long
def test_a_deadlock_is_run_again(database: Database, other: psycopg.Connection[Any]) -> None:
    both = threading.Barrier(2)

    def write(first: int, second: int) -> Callable[[Session], None]:
        def cross(session: Session) -> None:
            put(session, value(session, first) + 1, first)
            with suppress(threading.BrokenBarrierError):
                both.wait(0.5)
            put(session, value(session, second) + 1, second)

        return cross

    async def cross() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(database.run_writing, write(1, 2))
            group.start_soon(database.run_writing, write(2, 1))

    asyncio.run(cross())
    assert read(database, lambda session: (value(session, 1), value(session, 2))) == (2, 2)


def test_a_loss_that_the_function_hides_is_no_success(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    tries = []

    def write(session: Session) -> None:
        tries.append(1)
        if len(tries) == 1:
            with suppress(Exception):
                lose_at_a_statement(other, session)
        elif len(tries) == 2:
            try:
                lose_at_a_statement(other, session)
            except Exception:
                raise KeyError("another error because of it") from None
        else:
            put(session, 100)

    run(database, write)
    assert len(tries) == 3
    assert read(database, value) == 100


def insert_again(session: Session) -> None:
    session.execute(text("INSERT INTO counter VALUES (1, 1)"))


def test_a_failed_statement_that_the_function_hides_is_no_success(database: Database) -> None:
    def write(session: Session) -> None:
        put(session, 5)
        with suppress(IntegrityError):
            insert_again(session)

    with pytest.raises(InternalError, match="begin_nested"):
        run(database, write)
    assert read(database, value) == 0


def test_a_savepoint_undoes_a_failed_statement_alone(database: Database) -> None:
    def write(session: Session) -> None:
        put(session, 5)
        with suppress(IntegrityError), session.begin_nested():
            insert_again(session)

    run(database, write)
    assert read(database, value) == 5


def test_what_has_been_committed_is_not_done_again(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    tries = []

    def write(session: Session) -> None:
        tries.append(1)
        put(session, 7, 2)
        session.commit()
        lose_at_a_statement(other, session)

    with pytest.raises(DatabaseBusyError):
        run(database, write)
    assert len(tries) == 1
    assert read(database, lambda session: value(session, 2)) == 7


def test_tries_end_in_time(
    database: Database, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "BUSY_TIMEOUT", 0.5)
    began = time.monotonic()
    with pytest.raises(DatabaseBusyError):
        run(database, lambda session: lose_at_a_statement(other, session))
    assert time.monotonic() - began < 2.5


@LOSSES
def test_what_nobody_can_call_again_is_busy_at_the_first_loss(
    database: Database, other: psycopg.Connection[Any], lose: Any
) -> None:
    async def write() -> None:
        async with database.writer.lend() as session:
            lose(other, session)

    with pytest.raises(DatabaseBusyError):
        asyncio.run(write())
    with pytest.raises(DatabaseBusyError), database.write() as session:
        lose(other, session)
    assert read(database, value) in {0, 2}
    with database.write() as session:
        put(session, 9)
    assert read(database, value) == 9


def test_a_lock_that_does_not_come_is_busy(
    settings: Settings, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "BUSY_TIMEOUT", 0.3)
    impatient = postgresql.open(settings)
    with other.transaction():
        other.execute("LOCK TABLE counter")
        with pytest.raises(DatabaseBusyError):
            run(impatient, increment)
    run(impatient, increment)
    impatient.dispose()


def cut_all(other: psycopg.Connection[Any]) -> None:
    other.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_cut_connections_are_noticed_before_use(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    tries = []

    def write(session: Session) -> None:
        tries.append(1)
        increment(session)

    def look(session: Session) -> int:
        tries.append(1)
        return value(session)

    run(database, write)
    read(database, look)
    with database.read() as session:
        value(session)
    cut_all(other)
    tries.clear()
    run(database, write)
    assert read(database, look) == 2
    with database.read() as session:
        assert value(session) == 2
    assert len(tries) == 2


def test_a_cut_under_an_open_result_gives_the_connection_back(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    many = text("SELECT generate_series(1, 100000)").execution_options(yield_per=10)
    session = database.read()  # It is kept, so that no garbage collector helps
    with suppress(DatabaseUnavailableError), session:  # That is no error of the driver's own
        result = session.execute(many)
        assert result.fetchone() == (1,)
        cut_all(other)
    pool: Any = database.readers.engine.pool
    assert pool.checkedout() == 0


def test_what_was_cut_before_its_commit_is_tried_once_more(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    for way in (run, read):
        for cuts in (1, 2):
            tries: list[int] = []

            def use(session: Session, tries: list[int] = tries, cuts: int = cuts) -> int:
                found = value(session)
                tries.append(1)
                if len(tries) <= cuts:
                    cut_all(other)
                    value(session)
                return found

            if cuts == 1:
                assert way(database, use) == 0
            else:
                with pytest.raises(DatabaseUnavailableError):
                    way(database, use)
            assert len(tries) == 2


def test_a_commit_without_an_answer_is_not_done_again(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    other.execute(
        "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'"
    )
    other.execute(
        "CREATE CONSTRAINT TRIGGER cut AFTER UPDATE ON counter DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION cut()"
    )
    tries = []

    def write(session: Session) -> None:
        tries.append(1)
        put(session, 1)

    with pytest.raises(DatabaseUnavailableError):
        run(database, write)
    assert len(tries) == 1


def test_a_server_that_is_gone_is_unavailable_until_it_is_back(settings: Settings) -> None:
    with Server() as server:
        database = postgresql.open(Settings.load(database_url=server.url))
        one = text("SELECT 1")
        assert read(database, lambda session: session.scalar(one)) == 1
        server.kill()
        for way in (read, run):
            with pytest.raises(DatabaseUnavailableError):
                way(database, lambda session: session.scalar(one))
        server.start()
        assert read(database, lambda session: session.scalar(one)) == 1
        assert run(database, lambda session: session.scalar(one)) == 1
        database.dispose()


def test_a_server_that_refuses_to_write_is_unavailable(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    name = other.info.dbname
    other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert read(database, value) == 0
    with pytest.raises(DatabaseUnavailableError):
        run(database, increment)


def test_a_reader_cannot_write_and_sees_one_state(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    def look(session: Session) -> None:
        assert value(session) == 0
        other.execute("UPDATE counter SET value = 1")
        assert value(session) == 0
        put(session, 3)

    with pytest.raises(InternalError, match="read-only") as wrong:
        read(database, look)
    assert not isinstance(wrong.value, DatabaseUnavailableError)
    with pytest.raises(OperationalError), database.read() as session:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def test_a_session_is_not_used_after_its_end(database: Database) -> None:
    kept: list[Any] = []

    def keep(session: Session) -> None:
        rows = session.connection(execution_options={"stream_results": True})
        kept.extend([session, session.execute(text("SELECT id FROM counter"))])
        kept.append(rows.execute(text("SELECT generate_series(1, 100000)")))

    for way in (read, run):
        way(database, keep)
        session, result, stream = kept
        with pytest.raises(SessionEndedError):
            session.execute(text("SELECT 1"))
        for late in (result, stream):
            with pytest.raises(SessionEndedError):
                late.fetchall()
        kept.clear()
    assert read(database, value) == 0


def test_an_abandoned_session_gives_its_connection_up(database: Database) -> None:
    def abandon() -> None:
        session = database.read()
        value(session)
        session.cycle = session  # type: ignore[attr-defined]

    async def leave() -> int:
        abandon()
        database.readers.end_abandoned()
        await asyncio.sleep(3 * engine.COLLECT_AFTER)
        assert isinstance(database.readers, engine.Readers)
        return database.readers._taken()

    gc.disable()
    try:
        assert asyncio.run(leave()) == 0
    finally:
        gc.enable()


def test_readers_that_are_kept_are_told_to_health(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "READERS_WAIT", 0.2)
    readers = database.readers
    assert isinstance(readers, engine.Readers)
    asyncio.run(readers.look())
    kept = [database.read() for _ in range(settings.for_others)]
    for session in kept:
        value(session)
    with pytest.raises(Degraded, match="outside of routes"):
        asyncio.run(readers.look())
    for session in kept:
        session.end()  # type: ignore[attr-defined]

    async def wait() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(settings.database_connections):
                group.start_soon(database.run_reading, lambda _: time.sleep(0.5))
            await asyncio.sleep(0.1)
            with pytest.raises(Degraded, match="wait"):
                await readers.look()

    asyncio.run(wait())


def test_a_process_has_no_more_connections_than_it_says(
    database: Database, settings: Settings, other: psycopg.Connection[Any]
) -> None:
    async def many() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(database.run_reading, value)
                group.start_soon(database.run_writing, lambda session: value(session))

    asyncio.run(many())
    kept = [database.read() for _ in range(settings.for_others)]
    for session in kept:
        value(session)
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    row = other.execute(count).fetchone()
    assert row is not None
    # without the one of this test, and with the one of /health that is not there now
    assert settings.for_others + 2 < row[0] <= settings.of_process
    for session in kept:
        session.end()  # type: ignore[attr-defined]


place = contextvars.ContextVar("place", default="nowhere")


def test_a_function_runs_in_its_callers_context_and_can_call_the_loop(database: Database) -> None:
    async def call() -> list[object]:
        place.set("here")

        async def from_loop() -> str:
            return threading.current_thread().name

        def use(session: Session) -> tuple[str, str]:
            return place.get(), anyio.from_thread.run(from_loop)

        return [await database.run_reading(use), await database.run_writing(use)]

    assert asyncio.run(call()) == [("here", threading.main_thread().name)] * 2


def test_a_function_that_nobody_waits_for_gives_its_turn_back(database: Database) -> None:
    async def leave() -> None:
        assert isinstance(database.writer, engine.Writers)
        task = asyncio.create_task(database.run_writing(lambda _: time.sleep(0.2)))
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert database.writer._threads.taken == 1
        await asyncio.sleep(0.4)
        assert database.writer._threads.taken == 0

    asyncio.run(leave())


def stop(_: Session) -> None:
    raise StopIteration


def test_a_thread_that_cannot_start_takes_no_turn(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        for _ in range(64):
            with pytest.raises(RuntimeError, match="can't start"):
                read(database, value)
    assert read(database, value) == 0


def test_stop_iteration_does_not_hang(database: Database) -> None:
    for way in (read, run):
        with pytest.raises(RuntimeError, match="StopIteration"):
            way(database, stop)


@pytest.fixture
def client(settings: Settings, database: Database, other: psycopg.Connection[Any]) -> TestClient:
    other.execute(
        "CREATE TABLE kept (id bigint PRIMARY KEY, name varchar(5) UNIQUE, a bigint, b bigint, "
        "parent bigint REFERENCES kept, small int CHECK (small > 0), UNIQUE (a, b))"
    )
    other.execute("CREATE UNIQUE INDEX ON kept (lower(name))")
    other.execute("INSERT INTO kept VALUES (1, 'one', 1, 1, NULL, 1)")
    app, router = FastAPI(), Router()
    app.state.database = database

    @router.post("/execute")
    def execute(session: Writer, statement: str) -> None:
        session.execute(text(statement))

    @router.post("/keep")
    def keep(session: Writer, number: int = 2, name: str | None = None) -> None:
        kept = Table("kept", MetaData(), Column("id", Integer), Column("name", String))
        session.execute(kept.insert(), {"id": number, "name": name})

    @app.get("/plain")
    def plain(session: Reader, _: Annotated[Database, Depends(get_database)]) -> int:
        return value(session)

    app.include_router(router)
    add_error_handlers(app)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("columns", "values", "status", "fields"),
    [
        ("id", "1", 409, ["id"]),
        ("id, a, b", "2, 1, 1", 409, ["a", "b"]),
        ("id, name", "2, 'ONE'", 409, []),
        ("id, parent", "2, 77", 409, []),
        ("id", "NULL", 500, None),
        ("id, small", "2, -1", 500, None),
        ("id, small", "2, 1 / 0", 500, None),
        ("id, small", "2, 99999999999", 422, None),
        ("id, name", "2, 'too long'", 422, None),
    ],
)
def test_a_refused_change_is_told_without_the_drivers_text(
    client: TestClient, columns: str, values: str, status: int, fields: list[str] | None
) -> None:
    statement = f"INSERT INTO kept ({columns}) VALUES ({values})"  # noqa: S608, for the test
    answer = client.post("/execute", params={"statement": statement})
    assert answer.status_code == status
    if fields is not None:
        assert answer.json()["fields"] == fields
    assert "INSERT" not in answer.text
    assert "kept" not in answer.text


def test_the_log_has_no_value_of_a_refused_change(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "app.chassis.application"):
        assert client.post("/keep", params={"number": 2, "name": "one"}).status_code == 409
    (line,) = [one for one in caplog.messages if one.startswith("The database refused")]
    assert "unique constraint" in line
    assert "\n" not in line
    assert "(one)" not in line


@pytest.mark.parametrize("values", [{"name": "a\0b"}, {"name": "123456"}, {"number": 2**70}])
def test_a_value_that_does_not_fit_is_a_422(client: TestClient, values: dict[str, Any]) -> None:
    answer = client.post("/keep", params=values)
    assert answer.status_code == 422, answer.text
    assert "kept" not in answer.text


def test_what_a_lost_try_has_begun_is_done_once(client: TestClient, other: Any) -> None:
    done: list[int] = []
    router, tries = Router(), []

    @router.post("/twice", status_code=202)
    def twice(session: Writer, tasks: BackgroundTasks, response: Response) -> int:
        before = value(session)
        tries.append(before)
        tasks.add_task(done.append, before)
        response.set_cookie("seen", str(before))
        if len(tries) == 1:
            response.status_code = 201
            other.execute("UPDATE counter SET value = 7 WHERE id = 1")
        put(session, before + 1)
        return before + 1

    app: Any = client.app
    app.include_router(router)
    answer = client.post("/twice")
    assert tries == [0, 7]
    assert (answer.status_code, answer.json()) == (202, 8)
    assert answer.headers.get_list("Set-Cookie") == ["seen=7; Path=/; SameSite=lax"]
    assert done == [7]


def test_a_later_try_reads_an_uploaded_file_from_where_the_first_did() -> None:
    files = [UploadFile(BytesIO(b"first")), UploadFile(BytesIO(b"second"))]
    undo = remember({"file": files[0], "files": files[1:]})
    for _ in range(2):
        undo()
        assert [one.file.read() for one in files] == [b"first", b"second"]


def test_a_plain_router_can_read(client: TestClient) -> None:
    assert [client.get("/plain").json() for _ in range(3)] == [0, 0, 0]


moments = Table(
    "moments",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("plain", DateTime, server_default=func.now()),
    Column("zoned", DateTime(timezone=True)),
    Column("day", Time),
)


def test_times_are_kept_in_utc_whatever_the_server_has(
    database: Database, other: psycopg.Connection[Any]
) -> None:
    other.execute(f"ALTER DATABASE {other.info.dbname} SET timezone = 'Asia/Tokyo'")
    there = timezone(timedelta(hours=5))
    moment = datetime(2026, 1, 31, 9, 30, 0, 123456, tzinfo=there)

    def write(session: Session) -> None:
        moments.create(session.connection())
        row = {"plain": moment, "zoned": moment, "day": day_time(1, 2, tzinfo=UTC)}
        session.execute(moments.insert(), [{"id": 1} | row])
        session.execute(moments.insert(), {"id": 2})

    run(database, write)
    first, second = read(database, lambda session: session.execute(select(moments)).all())
    utc = moment.astimezone(UTC)
    assert first[1:] == (utc.replace(tzinfo=None), moment, day_time(1, 2))
    assert first.zoned.utcoffset() == timedelta()
    assert abs(datetime.now(UTC).replace(tzinfo=None) - second.plain) < timedelta(minutes=1)
    refused = moments.insert().values(id=3, day=day_time(1, tzinfo=there))
    with pytest.raises(StatementError, match="has to be UTC"):
        run(database, lambda session: session.execute(refused))
