"""Tables with every type of column and reference, and rows for them and for the service's."""

import enum
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from app.chassis import assembly, migrate, revisions
from app.chassis.postgresql import move, stores
from app.models import Base, Note

FIRST = datetime(1, 1, 1, tzinfo=UTC).replace(tzinfo=None)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, UTC).replace(tzinfo=None)


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Secret(sa.TypeDecorator[str]):
    """Text that is kept backwards, and that nobody may read and write again."""

    impl = sa.String(40)
    cache_ok = True

    def process_bind_param(self, value: str | None, _: sa.Dialect) -> str | None:
        return value and f"{random.random()}:{value[::-1]}"  # noqa: S311

    def process_result_value(self, value: str | None, _: sa.Dialect) -> str | None:
        return value and value.rpartition(":")[2][::-1]


big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData(naming_convention=Base.metadata.naming_convention)

kinds = sa.Table(
    "Kinds",
    metadata,
    sa.Column("id", big, primary_key=True),
    sa.Column("small", sa.SmallInteger),
    sa.Column("medium", sa.Integer),
    sa.Column("large", sa.BigInteger),
    sa.Column("price", sa.Numeric(12, 3)),
    sa.Column("ratio", sa.Float),
    sa.Column("single", sa.REAL),
    sa.Column("day", sa.Date),
    sa.Column("at", sa.Time),
    sa.Column("moment", sa.DateTime),
    sa.Column("zoned", sa.DateTime(timezone=True)),
    sa.Column("length", sa.Interval),
    sa.Column("yes", sa.Boolean),
    sa.Column("data", sa.JSON),
    sa.Column("binary_data", sa.JSON().with_variant(JSONB(), "postgresql")),
    sa.Column("bytes", sa.LargeBinary),
    sa.Column("colour", sa.Enum(Colour)),
    sa.Column("number", sa.Uuid),
    sa.Column("short", sa.String(10)),
    sa.Column("fixed", sa.CHAR(5)),
    sa.Column("long", sa.Text),
    sa.Column("pickled", sa.PickleType),
    sa.Column("secret", Secret),
    sa.Column("twice", sa.Integer, sa.Computed("medium * 2", persisted=True)),
    sa.CheckConstraint("small < 1000", name="small"),
    sa.UniqueConstraint("short", "medium"),
    sqlite_autoincrement=True,
)

tree = sa.Table(
    "tree",
    metadata,
    sa.Column("id", big, primary_key=True),
    sa.Column("parent_id", big, sa.ForeignKey("tree.id")),
)

pairs = sa.Table(
    "pairs",
    metadata,
    sa.Column("a", sa.String(20), primary_key=True),
    sa.Column("b", sa.Integer, primary_key=True),
    sa.Column("kind_id", big, sa.ForeignKey("Kinds.id"), nullable=False),
)

children = sa.Table(
    "children",
    metadata,
    sa.Column("id", big, primary_key=True),
    sa.Column("a", sa.String(20)),
    sa.Column("b", sa.Integer),
    sa.ForeignKeyConstraint(["a", "b"], ["pairs.a", "pairs.b"]),
)

teams = sa.Table(
    "teams",
    metadata,
    sa.Column("id", big, primary_key=True),
    sa.Column("leader_id", big, sa.ForeignKey("members.id", name="fk_teams_leader")),
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("id", big, primary_key=True),
    sa.Column("team_id", big, sa.ForeignKey("teams.id", name="fk_members_team"), nullable=False),
)

TABLES = [kinds, tree, pairs, children, teams, members]

REVISION = """
import sys

from alembic import op
import sqlalchemy as sa

# The name depends on who imports it, pytest or the command of a test
(name,) = (name for name in sys.modules if name.endswith("chassis.postgresql.everything"))
everything = sys.modules[name]
revision = "everything"
down_revision = "{head}"


def upgrade():
    # SQLAlchemy notes in a table that a reference of a circle was made later, on one database
    copied = sa.MetaData(naming_convention=everything.metadata.naming_convention)
    for table in everything.TABLES:
        table.to_metadata(copied)
    copied.create_all(op.get_bind())
    op.bulk_insert(everything.tree, [dict(id=1, parent_id=None)])  # a row that the source has too
"""


def settings(url: str = "postgresql://app@127.0.0.1/app", timeout: float = 0) -> Any:
    return SimpleNamespace(lock_timeout=timeout, direct_url=make_url(url))


def every_table() -> sa.MetaData:
    """Return the service's tables and these, where no other test sees them."""
    for feature in revisions.FEATURES:
        import_module(f"app.chassis.{feature.name}.models")
    every = sa.MetaData()
    for table in [*assembly.metadata().tables.values(), *TABLES]:
        table.to_metadata(every)
    return every


def run(source: str, target: str, *leave: str, timeout: float = 0) -> None:
    move.move(source, target, leave, settings(timeout=timeout), every_table(), migrate)


@contextmanager
def opened(address: str, how: str = "writing") -> Iterator[stores.Store]:
    place = move.find(address, "", settings())
    with getattr(place, how)(0) as store:
        yield store


def make(address: str, scale: int = 1, seed: int = 1) -> None:
    """Make a database with the service's tables and these, and fill them."""
    dice = random.Random(seed)  # noqa: S311
    with opened(address) as store:
        for line in migrate.lines_behind(store):
            migrate.run_alembic(store, line)
        store.clear(TABLES)
        with Session(store.connection, join_transaction_mode="rollback_only") as session:
            fill(session, dice, scale)
            session.commit()
        for table in (Base.metadata.tables["notes"], kinds):
            # As if later rows had been deleted
            store.begin_after(table, "id", store.last_id(table, "id") + 7)


def moment(dice: random.Random) -> datetime:
    return datetime(1950, 1, 1, tzinfo=UTC).replace(tzinfo=None) + timedelta(
        seconds=dice.randrange(10**10), microseconds=dice.choice([0, 1, 999999])
    )


def text(dice: random.Random, length: int) -> str:
    return "".join(dice.choices("abc äß€🙂\\\t\n\r\"'%{},\x01", k=dice.randrange(length)))


def fill(session: Session, dice: random.Random, scale: int) -> None:
    count = 40 * scale
    session.add_all(Note(text=text(dice, 200), created_at=moment(dice)) for _ in range(count * 10))
    values = [
        {
            "small": dice.randrange(-32768, 1000),
            "medium": number,
            "large": dice.choice([-(2**63), 2**63 - 1, dice.randrange(2**60)]),
            "price": Decimal(dice.randrange(-(10**12) + 1, 10**12)) / 1000,
            "ratio": dice.choice([dice.random(), 1e308, -5e-324, 0.0, float("inf")]),
            "single": dice.choice([0.5, 0.1]),  # No others are the same with single precision
            "day": dice.choice([date.min, date.max, moment(dice).date()]),
            "at": dice.choice([time.min, time.max]),
            "moment": dice.choice([FIRST, LAST, moment(dice)]),
            "zoned": moment(dice).replace(tzinfo=UTC),
            "length": timedelta(microseconds=dice.randrange(10**15)),
            "yes": dice.random() < 0.5,
            "data": dice.choice([{"b": [1, 2.5, None, "ä\\u0000"], "a": {}}, [], "x", 5, 1.5]),
            "binary_data": {"z": dice.random(), "a": [True, "€\\\\u0000"]},
            "bytes": dice.randbytes(dice.randrange(50)),
            "colour": dice.choice(list(Colour)),
            "number": uuid.UUID(int=dice.getrandbits(128)),
            "short": text(dice, 10),
            "fixed": dice.choice(["abcde", "ab"]),
            "long": text(dice, 3000),
            "pickled": {"a": {1, 2}},
            "secret": "secret",
        }
        for number in range(count)
    ]
    session.execute(sa.insert(kinds), values)
    session.execute(sa.insert(kinds).values(id=count + 5))  # All else is empty
    session.execute(sa.update(kinds).where(kinds.c.id == 3).values(data=sa.null()))
    session.execute(
        sa.insert(tree), [{"id": n, "parent_id": n + 1 if n < 9 else None} for n in range(1, 10)]
    )
    session.execute(
        sa.insert(pairs), [{"a": f"x{n % 3}", "b": n, "kind_id": n + 1} for n in range(20)]
    )
    session.execute(
        sa.insert(children),
        [{"a": f"x{n % 3}", "b": n if n % 2 else None} for n in range(20)],
    )
    session.execute(sa.insert(teams), [{"id": n} for n in range(1, 4)])
    session.execute(sa.insert(members), [{"id": n, "team_id": n % 3 + 1} for n in range(1, 9)])
    session.execute(sa.update(teams).values(leader_id=teams.c.id + 1))
    if "users" in Base.metadata.tables:
        users = import_module("app.chassis.oauth.models")
        session.add_all(
            users.User(provider="google", subject=f"{n}", email="ä@b.c", created_at=moment(dice))
            for n in range(30)
        )
    if "threads" in Base.metadata.tables:
        threads = import_module("app.chassis.conversations.models")
        session.add_all(
            threads.Thread(title=text(dice, 200), owner_id=n or None) for n in range(30)
        )
        session.flush()
        session.add_all(
            threads.Message(
                thread_id=dice.randrange(1, 31),
                role=dice.choice(["user", "assistant"]),
                status=dice.choice(["complete", "interrupted"]),
                text=text(dice, 900),
                writing_until=dice.choice([None, moment(dice)]),
            )
            for _ in range(200)
        )


def content(address: str) -> dict[str, list[Any]]:
    """Return all rows as the service sees them, and the last id of each table."""
    found: dict[str, list[Any]] = {}
    with opened(address, "reading") as store:
        store.driver.text_factory = str
        for table in every_table().tables.values():
            keys = list(table.primary_key.columns)
            rows = store.connection.execute(sa.select(table).order_by(*keys))
            found[table.name] = [comparable(row) for row in rows]
            if (column := table.autoincrement_column) is not None:
                found[table.name].append(store.last_id(table, column.name))
    return found


def comparable(row: Any) -> list[Any]:
    return [
        value.astimezone(UTC).replace(tzinfo=None)
        if isinstance(value, datetime) and value.tzinfo
        else value.rstrip(" ")
        if column == "fixed" and value
        else value
        for column, value in row._mapping.items()
    ]


def use_versions(directory: Path) -> None:
    """Take the revisions from another directory, in a process that is about to be killed."""
    migrate.PROJECT_ROOT = directory  # type: ignore[attr-defined]
    revisions.PROJECT_ROOT = directory  # type: ignore[attr-defined]
    revisions.VERSIONS = directory / "migrations" / "versions"  # type: ignore[misc]
