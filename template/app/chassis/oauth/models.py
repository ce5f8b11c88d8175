# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Table of people who have signed in. A table of your own refers to it by `users.id`."""

from datetime import datetime

from sqlalchemy import BigInteger, Integer, PrimaryKeyConstraint, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.chassis.times import now
from app.models import Base


class User(Base):
    """Account at one provider. A person with two accounts is two users."""

    __tablename__ = "users"
    # An id is never reused, because a cookie of its former owner may still exist
    __table_args__ = (
        PrimaryKeyConstraint("id", name="pk_users"),
        UniqueConstraint("provider", "subject", name="uq_users_provider"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"))
    provider: Mapped[str] = mapped_column(String(20))
    subject: Mapped[str] = mapped_column(String(300))
    # The address is kept only if the provider has verified it
    email: Mapped[str | None] = mapped_column(String(254))
    name: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=now)
    last_login_at: Mapped[datetime] = mapped_column(default=now)
    # Sessions of an earlier epoch have been signed out
    session_epoch: Mapped[int] = mapped_column(Integer, default=0)
