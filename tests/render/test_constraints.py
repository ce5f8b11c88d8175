"""Constraints on several columns have names of their own, so that migrations see each of them."""

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

MODELS = """
from sqlalchemy import (
    CheckConstraint, ForeignKeyConstraint, Index, MetaData, UniqueConstraint, func, text
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={convention})


class Room(Base):
    __tablename__ = "rooms"
    __table_args__ = (
        UniqueConstraint("code", "day", name="uq_rooms_code_day"),
        UniqueConstraint("id", "code", name="uq_rooms_id_code"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[int]
    day: Mapped[int]


class Booking(Base):
    __tablename__ = "bookings"
    __table_args__ = ({arguments})
    id: Mapped[int] = mapped_column(primary_key=True)
    room: Mapped[int]
    day: Mapped[int]
    code: Mapped[int]
"""

BEFORE = """
    UniqueConstraint("room", "day"),
    Index(None, "room", "day"),
    ForeignKeyConstraint(["code", "day"], ["rooms.code", "rooms.day"]),
"""
AFTER = (
    BEFORE
    + """
    UniqueConstraint("room", "code"),
    Index(None, "room", "code"),
    ForeignKeyConstraint(["room", "code"], ["rooms.id", "rooms.code"]),
"""
)
FIRST_COLUMN = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Project:
    """A copy of the installed project, whose models are replaced."""

    def __init__(self, original: Path, directory: Path) -> None:
        self.path = directory / "project"
        shutil.copytree(original, self.path, ignore=shutil.ignore_patterns(".venv", "data"))
        self.python = original / ".venv" / "bin" / "python"
        found = re.search(r"naming_convention=(\{.*?\})", self.models.read_text(), re.DOTALL)
        assert found
        self.convention = found[1]
        (self.path / "migrations" / "versions" / "0001_notes.py").unlink()
        (self.path / "data").mkdir()

    @property
    def models(self) -> Path:
        return self.path / "app" / "models.py"

    @property
    def database(self) -> Path:
        return self.path / "data" / "app.db"

    def write(self, arguments: str, convention: object = None) -> None:
        source = MODELS.format(convention=convention or self.convention, arguments=arguments)
        self.models.write_text(source, encoding="utf-8")

    def run(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            [self.python, "-m", *arguments],
            cwd=self.path,
            capture_output=True,
            encoding="utf-8",
            env={"PATH": f"{self.python.parent}:/usr/bin:/bin", "PYTHONPATH": str(self.path)},
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def migrate(self) -> str:
        """Write a revision for the models, run it, and return its source."""
        before = set((self.path / "migrations" / "versions").glob("*.py"))
        self.run("alembic", "revision", "--autogenerate", "-m", "next")
        (made,) = set((self.path / "migrations" / "versions").glob("*.py")) - before
        self.run("app", "migrate")
        return made.read_text(encoding="utf-8")

    def finding(self, name: str) -> str:
        command = (
            "from app.chassis import assembly; from app.chassis.sqlite import check; "
            "from app.settings import Settings; "
            "print(*check.check(Settings.load(), assembly.metadata()), sep='\\n')"
        )
        done = subprocess.run(
            [self.python, "-c", command], cwd=self.path, capture_output=True, encoding="utf-8"
        )
        found = re.search(rf"id='{re.escape(name)}', status='(\w+)'", done.stdout)
        assert found, done.stderr
        return found[1]


@pytest.fixture
def project(installed: Callable[..., Path], tmp_path: Path) -> Project:
    return Project(installed(), tmp_path)


def insert(database: Path, *rows: tuple[int, int, int]) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany(
            "INSERT OR IGNORE INTO rooms (id, code, day) VALUES (?, ?, ?)",
            [(1, 5, 1), (2, 1, 5), (5, 5, 2)],
        )
        connection.executemany("INSERT INTO bookings (room, day, code) VALUES (?, ?, ?)", rows)


@pytest.mark.long
def test_a_second_constraint_on_the_same_column_is_made(project: Project) -> None:
    project.write(BEFORE)
    project.migrate()
    project.write(AFTER)
    revision = project.migrate()
    for name in ("uq_bookings_room_code", "ix_bookings_room_code", "fk_bookings_room_code_rooms"):
        assert name in revision
    with pytest.raises(sqlite3.IntegrityError, match=r"bookings\.room, bookings\.code"):
        insert(project.database, (1, 1, 5), (1, 2, 5))
    assert "No new upgrade operations" in project.run("alembic", "check")
    assert project.finding("models.names") == "ok"


@pytest.mark.long
def test_a_convention_of_first_columns_is_told_and_can_be_changed(project: Project) -> None:
    project.write(BEFORE, FIRST_COLUMN)
    project.migrate()
    assert project.finding("models.names") == "warning"

    project.write(AFTER, FIRST_COLUMN)
    assert project.finding("models.names") == "failed"
    for command in (["revision", "--autogenerate", "-m", "lost"], ["check"]):
        told = project.run("alembic", *command, fails=True)
        assert "2 constraints of table bookings have the name uq_bookings_room" in told
        assert "column_0_N_name" in told
        assert "Traceback" not in told
    assert not list(project.path.glob("migrations/versions/*lost*"))
    project.run("app", "migrate")

    insert(project.database, (1, 1, 5))
    project.write(AFTER)
    revision = project.migrate()
    assert "uq_bookings_room_day" in revision
    with pytest.raises(sqlite3.IntegrityError, match=r"bookings\.room, bookings\.code"):
        insert(project.database, (1, 2, 5))
    assert "No new upgrade operations" in project.run("alembic", "check")


@pytest.mark.long
def test_names_of_one_column_are_what_they_were(project: Project) -> None:
    single = 'UniqueConstraint("room"), Index(None, "day"), '
    project.write(single, FIRST_COLUMN)
    project.migrate()
    project.write(single)
    assert "No new upgrade operations" in project.run("alembic", "check")


@pytest.mark.long
def test_a_check_constraint_that_is_not_written_is_told(project: Project) -> None:
    project.write(BEFORE)
    project.migrate()
    project.write(BEFORE + 'CheckConstraint("day > 0", name="day"),')
    told = project.run("alembic", "revision", "--autogenerate", "-m", "nothing")
    assert "Table bookings has no ck_bookings_day in the database" in told


@pytest.mark.long
def test_an_index_on_an_expression_that_is_not_written_is_told(project: Project) -> None:
    project.write(BEFORE + 'Index("by_size", func.abs(text("day")), unique=True),')
    told = project.run("alembic", "revision", "--autogenerate", "-m", "nothing")
    assert "Table bookings has no index by_size in the database" in told
    assert "ix_bookings_room_day in the database" not in told
