# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Let an answer go on for readers that another process serves.

Revision ID: conversations_0002
Revises: conversations_0001
"""

import sqlalchemy as sa
from alembic import op

revision = "conversations_0002"
down_revision = "conversations_0001"


def upgrade() -> None:
    op.add_column("messages", sa.Column("followed_until", sa.DateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("messages", "followed_until")
