"""A copy that is whole, made while the service writes, and its way back."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from app.chassis import migrate
from app.chassis.backup import backup, restore
from app.chassis.database import Database
from app.chassis.errors import StartupError
from app.chassis.sqlite import open_database
from app.settings import Settings


@pytest.fixture
def database(settings: Settings) -> Database:
    migrate.upgrade(settings.database_path)
    made = Database(settings.database_path)
    with made.write() as session:
        session.execute(text("CREATE TABLE pairs (a INTEGER, b INTEGER)"))
    return made


def test_a_copy_made_while_writing_is_consistent(database: Database, tmp_path: Path) -> None:
    stop = threading.Event()
    written = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with database.write() as session:
                session.execute(text("INSERT INTO pairs VALUES (:n, :n)"), {"n": number})
            written.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert written.wait(10)
    copies = [tmp_path / f"copy{number}.db" for number in range(3)]
    for copy in copies:
        assert backup(database.path, copy) == copy
    stop.set()
    writer.join()

    for copy in copies:
        connection = open_database(copy)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count, highest, difference = connection.execute(
            "SELECT count(*), max(a), sum(a <> b) FROM pairs"
        ).fetchone()
        # a prefix of what was written, without a hole
        assert count == highest > 0
        assert difference == 0
        assert migrate.current_revisions(connection) == migrate.head_revisions()
        connection.close()
        assert not copy.with_name(f"{copy.name}-wal").exists()


def test_an_existing_file_is_never_replaced(database: Database, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep me", encoding="utf-8")

    with pytest.raises(StartupError, match="exists already"):
        backup(database.path, target)
    assert target.read_text(encoding="utf-8") == "keep me"


@pytest.mark.parametrize("target", ["copy.db/below", "missing/copy.db"])
def test_a_target_that_cannot_be_made_is_one_clear_line(
    database: Database, tmp_path: Path, target: str
) -> None:
    with pytest.raises(StartupError, match=r"^Backup: ") as caught:
        backup(database.path, tmp_path / target)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_database_leaves_no_copy(tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    with pytest.raises(StartupError, match="there is no database"):
        backup(tmp_path / "missing.db", target)

    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"x" * 5000)
    with pytest.raises(StartupError, match="could not be made"):
        backup(damaged, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.db"]


def notes(path: Path) -> list[str]:
    connection = open_database(path)
    found = [row[0] for row in connection.execute("SELECT text FROM notes ORDER BY id")]
    connection.close()
    return found


def add_note(database: Database, content: str) -> None:
    with database.write() as session:
        session.execute(
            text("INSERT INTO notes (text, created_at) VALUES (:text, '2026-01-01')"),
            {"text": content},
        )


def test_a_restore_brings_the_copy_back_and_keeps_the_other(
    database: Database, tmp_path: Path
) -> None:
    add_note(database, "in the copy")
    copy = tmp_path / "copy.db"
    backup(database.path, copy)
    add_note(database, "written later, and only in the log")
    assert database.path.with_name("app.db-wal").stat().st_size > 0

    assert restore(copy, database.path, dry_run=True) is None
    assert len(notes(database.path)) == 2
    kept = restore(copy, database.path)

    assert notes(database.path) == ["in the copy"]
    assert kept is not None
    assert notes(kept) == ["in the copy", "written later, and only in the log"]
    assert notes(copy) == ["in the copy"]
    add_note(database, "the service goes on")
    assert notes(database.path) == ["in the copy", "the service goes on"]


def test_a_restore_replaces_a_damaged_or_missing_database(
    database: Database, tmp_path: Path
) -> None:
    add_note(database, "kept")
    copy = tmp_path / "copy.db"
    backup(database.path, copy)
    database.dispose()
    database.path.write_bytes(b"damaged")

    kept = restore(copy, database.path)
    assert kept is not None
    assert kept.read_bytes() == b"damaged"
    assert notes(database.path) == ["kept"]

    database.path.unlink()
    assert restore(copy, database.path) is None
    assert notes(database.path) == ["kept"]


def change(path: Path, statement: str) -> None:
    connection = open_database(path)
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.executescript(statement)
    connection.close()


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (Path.unlink, "there is no file"),
        (lambda path: path.write_bytes(b"text" * 2000), "could not be restored"),
        (damage, "damaged|malformed"),
        (lambda path: change(path, "DROP TABLE alembic_version"), "not a database of this service"),
        (
            lambda path: change(path, "UPDATE alembic_version SET version_num = 'x'"),
            "newer release",
        ),
        (
            lambda path: change(
                path,
                "CREATE TABLE a (id INTEGER PRIMARY KEY);"
                "CREATE TABLE b (a INTEGER REFERENCES a); INSERT INTO b VALUES (1)",
            ),
            "whose a is missing",
        ),
    ],
    ids=["missing", "text", "damaged", "foreign", "newer", "orphan"],
)
def test_what_should_not_be_restored_is_refused(
    database: Database, tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    add_note(database, "kept")
    copy = tmp_path / "copy.db"
    backup(database.path, copy)
    spoil(copy)

    with pytest.raises(StartupError, match=reason) as caught:
        restore(copy, database.path)

    assert "\n" not in str(caught.value)
    assert notes(database.path) == ["kept"]
    assert not list(tmp_path.glob(".restore-*"))
    assert not list(tmp_path.glob("*.replaced-*"))


def test_the_database_is_not_its_own_copy(database: Database) -> None:
    with pytest.raises(StartupError, match="the database itself"):
        restore(database.path, database.path)
