# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Create the tables of threads and messages.

Revision ID: conversations_0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "conversations_0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "threads",
        sa.Column("id", ID, nullable=False),
        sa.Column("owner_id", ID, nullable=True),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_threads"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_threads_owner_id_id", "threads", ["owner_id", "id"])
    op.create_table(
        "messages",
        sa.Column("id", ID, nullable=False),
        sa.Column("thread_id", ID, nullable=False),
        sa.Column("role", sa.String(length=9), nullable=False),
        sa.Column("status", sa.String(length=11), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("writing_until", sa.DateTime(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("role IN ('user', 'assistant')", name="ck_messages_role"),
        sa.CheckConstraint("status IN ('complete', 'interrupted')", name="ck_messages_status"),
        sa.ForeignKeyConstraint(
            ["thread_id"],
            ["threads.id"],
            name="fk_messages_thread_id_threads",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_messages_thread_id_id", "messages", ["thread_id", "id"])


def downgrade() -> None:
    op.drop_table("messages")
    op.drop_table("threads")
