# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Tables of threads and their messages."""

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import conv

from app.chassis.conversations.turns import Role, Status
from app.chassis.times import now
from app.models import Base

ID: Final = BigInteger().with_variant(Integer, "sqlite")
"""Type of an id. SQLite gives new ids only to an INTEGER, which has 64 bits there."""


class Thread(Base):
    """Conversation. Without sign-in it has no owner."""

    __tablename__ = "threads"
    __table_args__ = (
        Index("ix_threads_owner_id_id", "owner_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    # There is no foreign key, because sign-in is another feature, which may come later or go
    owner_id: Mapped[int | None] = mapped_column(ID)
    title: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)


class Message(Base):
    """Message of a person, or the answer to it.

    An answer is `interrupted` from its first moment, and `complete` only when it is complete. So
    nothing has to be repaired after a crash. A process that still writes an answer renews
    `writing_until` before that time, and one that follows another's answer `followed_until`.
    """

    __tablename__ = "messages"
    __table_args__ = (
        CheckConstraint("role IN ('user', 'assistant')", name=conv("ck_messages_role")),
        CheckConstraint("status IN ('complete', 'interrupted')", name=conv("ck_messages_status")),
        Index("ix_messages_thread_id_id", "thread_id", "id"),
        # An id is never reused, because an answer is stored and resumed by its id
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    thread_id: Mapped[int] = mapped_column(ID, ForeignKey("threads.id", ondelete="CASCADE"))
    role: Mapped[Role] = mapped_column(String(9))
    status: Mapped[Status] = mapped_column(String(11))
    text: Mapped[str] = mapped_column(Text)
    writing_until: Mapped[datetime | None]
    followed_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
