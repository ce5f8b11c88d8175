"""Tables of the service.

After a change, run `uv run alembic revision --autogenerate -m "..."`.
"""

from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.chassis import now


class Base(DeclarativeBase):
    """Base class that names every constraint, because SQLite's migrations find it by its name."""

    # A number has 64 bits on every database. SQLite gives new ids only to an INTEGER
    type_annotation_map: ClassVar = {int: BigInteger().with_variant(Integer, "sqlite")}

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Note(Base):
    __tablename__ = "notes"
    # An id is never reused, because the stream's Last-Event-ID relies on ids that only grow
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(2000))
    created_at: Mapped[datetime] = mapped_column(default=now)
