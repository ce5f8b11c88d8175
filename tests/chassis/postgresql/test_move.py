"""The way from SQLite to PostgreSQL and back, with rows of every kind."""

import fcntl
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.chassis import migrate
from app.chassis.errors import StartupError
from app.chassis.postgresql import move, schema
from app.chassis.postgresql.local import Server
from app.chassis.settings import PROJECT_ROOT

from . import everything
from .everything import content, make, run

NewDatabase = Callable[[], str]


@pytest.fixture(autouse=True)
def revision(add_revision: Callable[[str], str]) -> None:
    add_revision(everything.REVISION)


@pytest.fixture
def new(server: Server) -> NewDatabase:
    return server.new_database


@pytest.fixture
def file(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give a SQLite database with rows of every kind, which is made once."""
    made = tmp_path_factory.getbasetemp() / "everything.db"
    if not made.exists():
        make(f"sqlite:///{made}")
    shutil.copy(made, tmp_path / "app.db")
    return f"sqlite:///{tmp_path}/app.db"


def change(address: str, *statements: str) -> None:
    """Change a database behind the service's back."""
    if address.startswith("sqlite"):
        with closing(sqlite3.connect(address.removeprefix("sqlite:///"))) as file, file:
            for statement in statements:
                file.execute(statement)
    else:
        with psycopg.connect(address) as connection:
            for statement in statements:
                connection.execute(statement)


def refused(*arguments: str, **options: Any) -> str:
    with pytest.raises(StartupError) as error:
        run(*arguments, **options)
    return str(error.value)


def is_untouched(address: str) -> bool:
    """Return whether a PostgreSQL database has no table at all."""
    with psycopg.connect(address) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        return found.fetchone() == (0,)


def test_there_and_back(file: str, new: NewDatabase, tmp_path: Path) -> None:
    before, there, back = content(file), new(), f"sqlite:///{tmp_path}/back.db"
    run(file, there)
    assert content(there) == before
    run(there, back)
    assert content(back) == before == content(file)
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"
    with (
        closing(sqlite3.connect(tmp_path / "app.db")) as one,
        closing(sqlite3.connect(tmp_path / "back.db")) as other,
    ):
        assert one.execute(schema).fetchall() == other.execute(schema).fetchall()
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_between_two_of_a_kind(file: str, new: NewDatabase, tmp_path: Path) -> None:
    one, other, copy = new(), new(), f"sqlite:///{tmp_path}/copy.db"
    run(file, copy)
    run(copy, one)
    run(one, other)
    assert content(other) == content(file)


def test_no_id_is_given_again(file: str, new: NewDatabase, tmp_path: Path) -> None:
    change(file, "DELETE FROM notes WHERE id > 5")
    there, back = new(), f"sqlite:///{tmp_path}/back.db"
    insert = "INSERT INTO notes (text, created_at) VALUES ('x', '2026-01-01') RETURNING id"
    run(file, there)
    with psycopg.connect(there) as connection:
        assert connection.execute(insert).fetchone() == (408,)
        connection.execute("DELETE FROM notes WHERE id > 1")
    run(there, back)
    with closing(sqlite3.connect(tmp_path / "back.db")) as other:
        assert other.execute(insert).fetchone() == (409,)


def test_what_to_change_is_said_at_the_end(
    file: str, new: NewDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = new()
    run(file, there)
    said = capsys.readouterr()
    assert "counts and checksums are the same" in said.out
    assert "DATABASE_URL: " in said.out
    assert "DATABASE_UNPOOLED_URL: " in said.out
    assert "database=postgresql" in said.out
    assert "Copied 400 of 400 rows of notes" in said.err
    run(there, f"sqlite:///{tmp_path}/back.db")
    assert f"DATABASE_URL: sqlite:///{tmp_path}/back.db" in capsys.readouterr().out


def test_a_second_run_finds_all_there(
    file: str, new: NewDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    """A move may have been killed between its end and its last line."""
    there = new()
    run(file, there)
    capsys.readouterr()
    run(file, there)
    said = capsys.readouterr()
    assert "has all rows already" in said.err
    assert "DATABASE_URL: " in said.out
    change(there, "UPDATE notes SET text = 'other' WHERE id = 7")
    assert "has rows already" in refused(file, there)


def test_a_target_with_rows_is_refused(file: str, new: NewDatabase, tmp_path: Path) -> None:
    there = new()
    change(there, "CREATE TABLE alembic_version (version_num text)", "CREATE TABLE x AS SELECT 1")
    assert "has rows already (x)" in refused(file, there)
    other = f"sqlite:///{tmp_path}/other.db"
    make(other, seed=2)
    before = content(other)
    assert "has rows already" in refused(file, other)
    assert content(other) == before


UNFIT = {
    "a NUL": ("UPDATE notes SET text = 'a' || char(0) WHERE id = 5", "notes, id 5: text has a NUL"),
    "a long text": (
        "UPDATE notes SET text = printf('%.*c', 2001, 'x') WHERE id = 5",
        "notes, id 5: text has 2001 characters, and the column takes 2000",
    ),
    "no UTF-8": ("UPDATE notes SET text = CAST(x'ff41' AS TEXT) WHERE id = 5", "is not UTF-8"),
    "bytes": ("UPDATE notes SET text = x'4142' WHERE id = 5", "is bytes in place of text"),
    "no time": ("UPDATE notes SET created_at = 'soon' WHERE id = 5", "is no value of the column's"),
    "a number for a time": ("UPDATE notes SET created_at = 5 WHERE id = 5", "id 5: created_at is"),
    "a time out of range": (
        "UPDATE notes SET created_at = '9999-12-31T23:00:00-05:00' WHERE id = 5",
        "notes, id 5: created_at a time has to be in the years 1 to 9999",
    ),
    "a large number": ("UPDATE Kinds SET medium = 2147483648 WHERE id = 5", "medium is out of"),
    "a large small number": ("UPDATE Kinds SET small = -32769 WHERE id = 5", "small is out of"),
    "text for a number": ("UPDATE Kinds SET large = 'x' WHERE id = 5", "is text in place of"),
    "a fraction": (
        "UPDATE Kinds SET large = 1.5 WHERE id = 5",
        "large is a number in place of a whole number",
    ),
    "a large decimal": ("UPDATE Kinds SET price = 1e9 WHERE id = 5", "price is out of range"),
    "an infinite decimal": ("UPDATE Kinds SET price = 9e999 WHERE id = 5", "price is infinite"),
    "a large single": ("UPDATE Kinds SET single = 1e300 WHERE id = 5", "single is out of range"),
    "no boolean": ("UPDATE Kinds SET yes = 2 WHERE id = 5", "yes is neither 0 nor 1"),
    "no JSON": ("UPDATE Kinds SET data = '{a' WHERE id = 5", "data is no JSON"),
    "NaN in JSON": ("UPDATE Kinds SET data = '[NaN]' WHERE id = 5", "data has NaN, which is no"),
    "a NUL in JSON": (
        "UPDATE Kinds SET binary_data = '[\"a\\u0000\"]' WHERE id = 5",
        "binary_data has a NUL",
    ),
    "half a character in JSON": (
        "UPDATE Kinds SET binary_data = '\"\\ud800\"' WHERE id = 5",
        "binary_data has a NUL character or half of one",
    ),
    "no colour": ("UPDATE Kinds SET colour = 'GREY' WHERE id = 5", "colour is none of the values"),
    "no identifier": ("UPDATE Kinds SET number = 'x' WHERE id = 5", "number is no value"),
    "a time of day with an offset": (
        "UPDATE Kinds SET at = '10:00:00+02:00' WHERE id = 5",
        "Kinds, id 5: at is a time of day with an offset",
    ),
    "a broken rule": ("UPDATE Kinds SET small = 1000 WHERE id = 5", "breaks the rule ck_Kinds_sma"),
    "an orphan": ("DELETE FROM Kinds WHERE id = 5", "pairs, a 'x1', b 4: kind_id refers to a row"),
    "an orphan of two columns": (
        "UPDATE children SET a = 'y' WHERE id = 2",
        "children, id 2: a, b refers to a row of pairs that is not there",
    ),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_a_row_that_cannot_be_moved_is_named(
    file: str, new: NewDatabase, tmp_path: Path, unfit: str
) -> None:
    statement, named = UNFIT[unfit]
    change(file, "PRAGMA ignore_check_constraints=ON", statement)
    before, there = (tmp_path / "app.db").read_bytes(), new()
    told = refused(file, there)
    assert "1 problem in " in told
    assert "nothing was written" in told
    assert named in told
    assert is_untouched(there)
    assert (tmp_path / "app.db").read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("INSERT INTO notes VALUES (1, 'x', '2026-01-01')", "notes, id 1: is there more"),
        ("INSERT INTO notes VALUES (500, NULL, '2026-01-01')", "id 500: text is empty"),
    ],
)
def test_a_table_with_weaker_rules(file: str, new: NewDatabase, statement: str, named: str) -> None:
    """A table may have been made by hand, and lack what the revisions say."""
    change(
        file,
        "ALTER TABLE notes RENAME TO old",
        "CREATE TABLE notes AS SELECT * FROM old",
        "DROP TABLE old",
        statement,
    )
    assert named in refused(file, new())


def test_only_the_first_problems_are_listed(file: str, new: NewDatabase) -> None:
    change(file, "UPDATE notes SET text = text || char(0)")
    told = refused(file, new())
    assert "20 problems" in told
    assert "maybe more" in told
    assert len(told.splitlines()) == 22


def test_times_with_an_offset_become_utc(file: str, new: NewDatabase) -> None:
    change(
        file,
        "UPDATE notes SET created_at = '2026-01-01T01:30:00+02:00' WHERE id = 5",
        "UPDATE notes SET created_at = '2026-01-01T01:30:00Z' WHERE id = 6",
    )
    there = new()
    run(file, there)
    with psycopg.connect(there) as connection:
        rows = connection.execute(
            "SELECT created_at::text FROM notes WHERE id IN (5, 6) ORDER BY id"
        )
        assert rows.fetchall() == [("2025-12-31 23:30:00",), ("2026-01-01 01:30:00",)]


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE notes SET created_at = 'infinity' WHERE id = 5", "notes, id 5: created_at is not"),
        ("UPDATE notes SET created_at = '0044-03-15 BC' WHERE id = 5", "id 5: created_at is not"),
        ("UPDATE \"Kinds\" SET ratio = 'NaN' WHERE id = 5", "Kinds, id 5: ratio is NaN"),
        ("UPDATE \"Kinds\" SET price = 'NaN' WHERE id = 5", "Kinds, id 5: price is NaN"),
        (
            'ALTER TABLE "Kinds" ALTER price TYPE numeric; '
            'UPDATE "Kinds" SET price = 1.23456 WHERE id = 5',
            "Kinds, id 5: price has more digits",
        ),
    ],
)
def test_a_row_that_sqlite_cannot_keep_is_named(
    file: str, new: NewDatabase, tmp_path: Path, statement: str, named: str
) -> None:
    there, back = new(), f"sqlite:///{tmp_path}/back.db"
    run(file, there)
    change(there, statement)
    told = refused(there, back)
    assert named in told
    with closing(sqlite3.connect(tmp_path / "back.db")) as connection:
        assert connection.execute("SELECT * FROM sqlite_master").fetchall() == []


def test_a_row_that_only_the_target_refuses_is_named(file: str, new: NewDatabase) -> None:
    """SQLite tells these two times apart, and PostgreSQL does not."""
    change(file, "CREATE UNIQUE INDEX twice ON notes (created_at)")
    change(
        file,
        "UPDATE notes SET created_at = '2026-01-01 10:00:00' WHERE id = 5",
        "UPDATE notes SET created_at = '2026-01-01T10:00:00' WHERE id = 9",
    )
    there = new()
    with everything.opened(there) as store:
        for line in migrate.lines_behind(store):
            migrate.run_alembic(store, line)
        store.clear(everything.TABLES)
    change(there, "CREATE UNIQUE INDEX twice ON notes (created_at)")
    assert refused(file, there).startswith("Move: notes, id 9: duplicate key value")


def test_unknown_tables_and_columns_are_left_only_if_told(file: str, new: NewDatabase) -> None:
    change(
        file,
        "CREATE TABLE mine (x)",
        "CREATE VIRTUAL TABLE found USING fts5(x)",
        "ALTER TABLE notes ADD colour TEXT",
        "CREATE TABLE alembic_version_gone (version_num text)",
    )
    told = refused(file, new())
    assert "no model has found, mine, notes.colour" in told
    assert told.endswith("--leave found --leave mine --leave notes.colour")
    assert "no model has mine" in refused(file, new(), "found", "notes.colour")
    run(file, new(), "found", "mine", "notes.colour")


def test_a_source_at_another_revision_is_refused(file: str, new: NewDatabase) -> None:
    change(file, "UPDATE alembic_version SET version_num = '0001'")
    assert "is at 0001" in refused(file, new())
    change(file, "DROP TABLE notes", "UPDATE alembic_version SET version_num = 'everything'")
    assert "has no notes, which a model has" in refused(file, new())


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        ("sqlite:////missing/app.db", "postgresql://app@127.0.0.1:1/app", "there is no file"),
        ("mysql://x:secret@y/z", "postgresql://app@127.0.0.1:1/app", "SOURCE has to be sqlite"),
        (
            "sqlite:////missing/app.db",
            "postgresql://app:secret@127.0.0.1:x/app",
            "TARGET has a port",
        ),
        ("sqlite:////x.db", "sqlite:////x.db", "are the same database"),
        ("postgres://app:secret@127.0.0.1:1/app", "sqlite:////x.db", "cannot be used"),
    ],
)
def test_what_is_no_database_is_refused(source: str, target: str, named: str) -> None:
    told = refused(source, target)
    assert named in told
    assert "secret" not in told.replace("PASSWORD", "")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, new: NewDatabase) -> None:
    (tmp_path / "app.db").write_text("text", encoding="utf-8")
    assert "is no SQLite database" in refused(f"sqlite:///{tmp_path}/app.db", new())


def test_a_running_service_is_waited_for_and_refused(
    file: str, new: NewDatabase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = new()
    with (tmp_path / "app.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        assert f"a service uses {tmp_path}/app.db" in refused(file, there, timeout=0.5)
        assert time.monotonic() - began > 0.4
    run(file, there)
    with psycopg.connect(there, application_name="api"):
        assert "api (1) uses" in refused(there, f"sqlite:///{tmp_path}/b.db", timeout=0.5)
    run(there, f"sqlite:///{tmp_path}/b.db")


def test_who_comes_to_the_source_meanwhile_is_noticed(
    file: str, new: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = new()
    run(file, there)
    opened: list[psycopg.Connection[Any]] = []
    real = move.copy

    def copy(*arguments: Any) -> None:
        if not opened:
            opened.append(psycopg.connect(there, application_name="api"))
        real(*arguments)

    monkeypatch.setattr(move, "copy", copy)
    told = refused(there, f"sqlite:///{tmp_path}/b.db")
    opened[0].close()
    assert "api (1) has begun to use" in told


@pytest.mark.long
@pytest.mark.parametrize("way", ["there", "back"])
def test_killed_at_ten_moments(file: str, new: NewDatabase, tmp_path: Path, way: str) -> None:
    source, target = file, new()
    if way == "back":
        run(file, target)
        source, target = target, f"sqlite:///{tmp_path}/back.db"
    before, dice = content(source), random.Random(way)  # noqa: S311

    def start(target: str) -> "subprocess.Popen[str]":
        code = (
            "import pathlib; from tests.chassis.postgresql import everything as all; "
            f"all.use_versions(pathlib.Path({str(tmp_path / 'project')!r})); "
            f"print('ready', flush=True); all.run({source!r}, {target!r}, timeout=20)"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    with start(new() if way == "there" else f"{target}2") as child:
        began = time.monotonic()
        assert child.wait() == 0
    whole = time.monotonic() - began
    killed = 0
    for number in range(30):
        with start(target) as child:
            time.sleep(dice.random() * whole * 0.8)
            child.kill()
            finished = child.wait() == 0
        assert content(source) == before
        if finished:  # It was faster than the first one, so the next one needs a new target
            target = new() if way == "there" else f"{target}{number}"
        killed += not finished
        if killed == 10:
            break
    assert killed == 10
    run(source, target, timeout=20)
    assert content(target) == before == content(source)


def test_a_target_that_fails_leaves_all_as_it_was(
    file: str, new: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, before = new(), content(file)
    real = move.copy

    def copy(source: Any, target: Any, part: Any, count: int) -> None:
        if part.name == "pairs":
            with psycopg.connect(there) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        real(source, target, part, count)

    monkeypatch.setattr(move, "copy", copy)
    told = refused(file, there)
    assert told.startswith("Move: ")
    assert told.endswith("is as it was.")
    assert len(told.splitlines()) == 1
    monkeypatch.undo()
    assert is_untouched(there)
    assert content(file) == before


def test_a_target_whose_schema_somebody_changes_is_refused_in_time(
    file: str, new: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "TABLE_SECONDS", 1)
    target = new()
    with psycopg.connect(target, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [schema.LOCK])
        assert "lock timeout" in refused(file, target)
    assert is_untouched(target)
