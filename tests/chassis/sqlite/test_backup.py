"""A copy that is whole, made while the service writes, and its way back."""

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from app.chassis import assembly, migrate, revisions
from app.chassis.database import Database
from app.chassis.errors import StartupError
from app.chassis.sqlite import backup as backups
from app.chassis.sqlite.backup import backup, backups_directory, copies, fetch, restore, tidy
from app.chassis.sqlite.driver import open_database
from app.chassis.sqlite.schema import current_revisions
from app.settings import Settings

from .databases import make_database, path_of


@pytest.fixture
def database(settings: Settings) -> Database:
    make_database(settings)
    made = assembly.engine.open(settings)
    with made.write() as session:
        session.execute(text("CREATE TABLE pairs (a INTEGER, b INTEGER)"))
        session.execute(text("CREATE TABLE lines (id INTEGER PRIMARY KEY, text TEXT)"))
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
        assert backup(path_of(database), copy) == copy
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
        assert current_revisions(connection) == revisions.head_revisions()
        connection.close()
        assert not copy.with_name(f"{copy.name}-wal").exists()


def test_an_existing_file_is_never_replaced(database: Database, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep me", encoding="utf-8")

    with pytest.raises(StartupError, match="exists already"):
        backup(path_of(database), target)
    assert target.read_text(encoding="utf-8") == "keep me"


@pytest.mark.parametrize("target", ["copy.db/below", "missing/copy.db"])
def test_a_target_that_cannot_be_made_is_one_clear_line(
    database: Database, tmp_path: Path, target: str
) -> None:
    with pytest.raises(StartupError, match=r"^Backup: ") as caught:
        backup(path_of(database), tmp_path / target)
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


def lines(path: Path) -> list[str]:
    connection = open_database(path)
    found = [row[0] for row in connection.execute("SELECT text FROM lines ORDER BY id")]
    connection.close()
    return found


def add_line(database: Database, content: str) -> None:
    with database.write() as session:
        session.execute(text("INSERT INTO lines (text) VALUES (:text)"), {"text": content})


def test_a_restore_brings_the_copy_back_and_keeps_the_other(
    database: Database, tmp_path: Path
) -> None:
    add_line(database, "in the copy")
    copy = tmp_path / "copy.db"
    backup(path_of(database), copy)
    add_line(database, "written later, and only in the log")
    assert path_of(database).with_name("app.db-wal").stat().st_size > 0

    assert restore(copy, path_of(database), migrate.upgrade, dry_run=True) is None
    assert len(lines(path_of(database))) == 2
    kept = restore(copy, path_of(database), migrate.upgrade)

    assert lines(path_of(database)) == ["in the copy"]
    assert kept is not None
    assert lines(kept) == ["in the copy", "written later, and only in the log"]
    assert lines(copy) == ["in the copy"]
    database.dispose()  # a service that is started again
    add_line(database, "the service goes on")
    assert lines(path_of(database)) == ["in the copy", "the service goes on"]


def test_a_restore_replaces_a_damaged_or_missing_database(
    database: Database, tmp_path: Path
) -> None:
    add_line(database, "kept")
    copy = tmp_path / "copy.db"
    backup(path_of(database), copy)
    database.dispose()
    path_of(database).write_bytes(b"damaged")

    kept = restore(copy, path_of(database), migrate.upgrade)
    assert kept is not None
    assert kept.read_bytes() == b"damaged"
    assert lines(path_of(database)) == ["kept"]

    path_of(database).unlink()
    assert restore(copy, path_of(database), migrate.upgrade) is None
    assert lines(path_of(database)) == ["kept"]


def change(path: Path, statement: str) -> None:
    connection = open_database(path)
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.executescript(statement)
    connection.close()


def forget(path: Path) -> None:
    for schema in revisions.schemas():
        change(path, f"DROP TABLE {schema.version_table}")


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
        (forget, "not a database of this service"),
        (
            lambda path: change(path, "UPDATE alembic_version SET version_num = 'x'"),
            "newer release",
        ),
    ],
    ids=["missing", "text", "damaged", "foreign", "newer"],
)
def test_what_should_not_be_restored_is_refused(
    database: Database, tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    add_line(database, "kept")
    copy = tmp_path / "copy.db"
    backup(path_of(database), copy)
    spoil(copy)

    with pytest.raises(StartupError, match=reason) as caught:
        restore(copy, path_of(database), migrate.upgrade)

    assert "\n" not in str(caught.value)
    assert lines(path_of(database)) == ["kept"]
    assert not list(tmp_path.glob(".restore-*"))
    assert not list(tmp_path.glob("*.replaced-*"))


def test_the_database_is_not_its_own_copy(database: Database) -> None:
    with pytest.raises(StartupError, match="the database itself"):
        restore(path_of(database), path_of(database), migrate.upgrade)


STAMPS = ("20260101T000000Z", "20260102T000000Z", "20260103T000000Z")


def test_copies_in_a_directory_are_named_after_the_time_and_rotated(
    database: Database, tmp_path: Path
) -> None:
    directory = backups_directory(path_of(database))
    directory.mkdir()
    for name in (*(f"app-{stamp}.db" for stamp in STAMPS), "app-20260101T120000Z.db.gz"):
        (directory / name).touch()
    (directory / "mine.db").touch()

    made = backup(path_of(database), keep=3)

    assert made.parent == directory
    kept = [copy.path.name for copy in copies(directory, path_of(database))]
    assert kept == [made.name, f"app-{STAMPS[2]}.db", f"app-{STAMPS[1]}.db"]
    assert (directory / "mine.db").exists()
    assert len(list(directory.iterdir())) == 4


def test_copies_of_one_second_do_not_collide(database: Database) -> None:
    made = [backup(path_of(database), keep=9) for _ in range(3)]

    found = copies(backups_directory(path_of(database)), path_of(database))
    assert sorted(copy.path for copy in found) == made


@pytest.mark.parametrize("named", ["copy.db.gz", ""])
def test_a_compressed_copy_comes_back(database: Database, tmp_path: Path, named: str) -> None:
    add_line(database, "kept")
    copy = backup(path_of(database), tmp_path / named, compress=not named)
    assert copy.name.endswith(".gz")
    assert copy.read_bytes()[:2] == b"\x1f\x8b"
    add_line(database, "taken back")

    restore(copy, path_of(database), migrate.upgrade)

    assert lines(path_of(database)) == ["kept"]


def test_a_damaged_compressed_copy_is_refused(database: Database, tmp_path: Path) -> None:
    copy = backup(path_of(database), tmp_path / "copy.db.gz")
    copy.write_bytes(copy.read_bytes()[:-200])

    with pytest.raises(StartupError, match=r"^Restore: .* could not be restored"):
        restore(copy, path_of(database), migrate.upgrade)
    assert not list(tmp_path.glob("*.replaced-*"))


def test_a_copy_leaves_the_service_its_room(database: Database, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="make room or name another directory"):
        backup(path_of(database), tmp_path / "copy.db", reserve=2**62)
    assert not (tmp_path / "copy.db").exists()


def test_one_file_is_not_rotated(database: Database, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--keep rotates the copies in a directory"):
        backup(path_of(database), tmp_path / "copy.db", keep=3)


def test_the_newest_copy_that_is_old_enough(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    directory = backups_directory(path_of(database))
    directory.mkdir()
    for stamp in STAMPS:
        (directory / f"app-{stamp}.db").write_text(stamp, encoding="utf-8")

    def fetched(at: datetime | None) -> str | None:
        target = tmp_path / "fetched"
        target.unlink(missing_ok=True)
        return target.read_text(encoding="utf-8") if fetch(settings, target, at) else None

    assert fetched(None) == STAMPS[2]
    assert fetched(datetime(2026, 1, 2, 23, tzinfo=UTC)) == STAMPS[1]
    assert fetched(datetime(2025, 12, 31, tzinfo=UTC)) is None


def test_the_newest_copy_may_be_compressed(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    add_line(database, "kept")
    backup(path_of(database), compress=True)
    add_line(database, "taken back")

    assert fetch(settings, tmp_path / "fetched")
    restore(tmp_path / "fetched", path_of(database), migrate.upgrade)

    assert lines(path_of(database)) == ["kept"]


def test_check_tells_the_newest_copy(database: Database, settings: Settings) -> None:
    (finding,) = backups.check(settings)
    assert (finding.id, finding.status) == ("backup.newest", "skipped")

    made = backup(path_of(database))

    (finding,) = backups.check(settings)
    assert finding.status == "ok"
    assert finding.verdict.startswith(f"{made} is of 20")


ADDED = """
import sqlalchemy as sa
from alembic import op

revision = "added"
down_revision = "{head}"


def upgrade() -> None:
    op.create_table("added", sa.Column("id", sa.Integer, primary_key=True))
"""


def test_an_older_copy_is_migrated(
    database: Database, tmp_path: Path, add_revision: Callable[[str], str]
) -> None:
    add_line(database, "kept")
    copy = backup(path_of(database), tmp_path / "copy.db")
    add_revision(ADDED)

    restore(copy, path_of(database), migrate.upgrade)

    connection = open_database(path_of(database))
    assert "added" in current_revisions(connection)
    assert connection.execute("SELECT count(*) FROM added").fetchone() == (0,)
    connection.close()
    assert lines(path_of(database)) == ["kept"]


def test_a_copy_whose_migration_fails_changes_nothing(
    database: Database, tmp_path: Path, add_revision: Callable[[str], str]
) -> None:
    copy = backup(path_of(database), tmp_path / "copy.db")
    add_line(database, "of today")
    add_revision(f"{ADDED}    raise RuntimeError\n")

    with pytest.raises(StartupError, match="was rolled back"):
        restore(copy, path_of(database), migrate.upgrade)

    assert lines(path_of(database)) == ["of today"]
    assert not list(tmp_path.glob("*.replaced-*"))


def test_a_restore_that_ends_in_the_middle_leaves_the_database_whole(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.db"
    add_line(database, "in the copy")
    backup(path_of(database), copy)
    add_line(database, "only in the log")

    def end(_: Path, target: Path) -> None:
        raise OSError(f"no {target} today")

    monkeypatch.setattr(Path, "replace", end)
    with pytest.raises(StartupError, match="could not be restored"):
        restore(copy, path_of(database), migrate.upgrade)
    assert lines(path_of(database)) == ["in the copy", "only in the log"]


def test_a_restore_waits_for_whoever_reads(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.db"
    backup(path_of(database), copy)
    monkeypatch.setattr(backups, "open_database", partial(open_database, busy_timeout=0.1))
    with database.read() as session:
        session.execute(text("SELECT count(*) FROM lines"))
        add_line(database, "written while somebody reads")
        with pytest.raises(StartupError, match="another process reads"):
            restore(copy, path_of(database), migrate.upgrade)
    assert lines(path_of(database)) == ["written while somebody reads"]
    restore(copy, path_of(database), migrate.upgrade)
    assert lines(path_of(database)) == []


def test_what_a_killed_command_has_left_is_removed(database: Database, tmp_path: Path) -> None:
    new, left, old, young = (
        tmp_path / name for name in (".new-a", ".restore-b", ".backup-c", ".backup-d")
    )
    for directory in (new, left, old, young):
        directory.mkdir()
        (directory / "app.db").touch()
    os.utime(old, (0, 0))
    second_name = tmp_path / "app.db.replaced-20260101T000000.000000Z"
    os.link(path_of(database), second_name)
    replaced = tmp_path / "app.db.replaced-20250101T000000.000000Z"
    replaced.touch()

    tidy(path_of(database))

    assert not new.exists()
    assert not left.exists()
    assert not old.exists()
    assert (young / "app.db").exists()
    assert not second_name.exists()
    assert replaced.exists()
    assert path_of(database).stat().st_nlink == 1
