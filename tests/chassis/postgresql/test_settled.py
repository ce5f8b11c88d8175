"""Ids up to which nothing is missing, while others write."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.chassis import assembly
from app.chassis.database import Database
from app.chassis.postgresql.settled import Progress
from app.settings import Settings


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "some things"

    id: Mapped[int] = mapped_column(primary_key=True)


class Other(Base):
    __tablename__ = "others"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    made = assembly.engine.open(settings)
    with made.write() as session:
        Base.metadata.create_all(session.connection())
    yield made
    made.dispose()


@pytest.fixture
def late(database: Database) -> Iterator[Connection]:
    """Somebody who has taken the first id, and is not at the end."""
    with database.writer.engine.connect() as connection:
        add(connection)
        yield connection


def add(connection: Connection) -> None:
    connection.execute(text('INSERT INTO "some things" DEFAULT VALUES'))


def add_things(database: Database, count: int = 1) -> None:
    with database.write() as session:
        session.add_all([Thing() for _ in range(count)])


def test_an_id_waits_for_a_smaller_one(database: Database, late: Connection) -> None:
    add_things(database)

    assert [database.settled(Thing.id) for _ in range(3)] == [0, 0, 0]
    late.commit()
    assert database.settled(Thing.id) == 2


def test_one_that_comes_to_nothing_is_not_waited_for(database: Database, late: Connection) -> None:
    add_things(database)

    assert database.settled(Thing.id) == 0
    late.rollback()
    assert database.settled(Thing.id) == 2


def test_who_begins_later_holds_nothing_up(database: Database, late: Connection) -> None:
    add_things(database)
    database.settled(Thing.id)
    with ExitStack() as stack:
        later = stack.enter_context(database.writer.engine.connect())
        add(later)
        late.commit()
        # The later one has an id that is larger
        assert database.settled(Thing.id) == 2
        add_things(database)
        assert database.settled(Thing.id) == 2
        later.commit()
    assert database.settled(Thing.id) == 4


def test_another_table_is_another_matter(database: Database, late: Connection) -> None:
    with database.write() as session:
        session.add(Other())
    assert database.settled(Other.id) == 1
    assert database.settled(Thing.id) == 0


def test_an_answer_from_before_the_candidate_says_nothing_of_it() -> None:
    progress = Progress()
    before = progress.turn
    assert progress.advance(5, frozenset({"late"}), before) == 0
    # Asked before "late" had the lock, and answered only now
    assert progress.advance(3, frozenset({"early"}), before) == 0
    assert progress.settled == 0
    assert progress.advance(6, frozenset({"other"}), progress.turn) == 5


def test_a_stream_misses_nothing_while_many_write(database: Database) -> None:
    writers, rows = 6, 40
    done = threading.Event()

    def write() -> None:
        for _ in range(rows):
            with database.writer.engine.connect() as connection:
                add(connection)
                connection.execute(text("SELECT pg_sleep(random() * 0.01)"))
                connection.commit()

    def follow() -> None:
        last = False
        while not last:
            last = done.is_set()
            newest = database.settled(Thing.id)
            after = seen[-1] if seen else 0
            found = select(Thing.id).where(Thing.id > after, Thing.id <= newest).order_by(Thing.id)
            with database.read() as session:
                seen.extend(session.scalars(found))

    seen: list[int] = []
    follower = threading.Thread(target=follow)
    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in (follower, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    follower.join()

    with database.read() as session:
        assert seen == list(session.scalars(select(Thing.id).order_by(Thing.id)))
    assert len(seen) == writers * rows
