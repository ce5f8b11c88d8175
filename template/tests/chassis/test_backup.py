"""A copy that is whole, made while the service writes."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from app.chassis import migrate
from app.chassis.backup import backup
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
        assert backup(database.path, copy) == copy.stat().st_size
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


@pytest.mark.parametrize("target", ["", "missing/copy.db"])
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
