"""Alembic's entry point. The work is done in app/chassis/migrate.py."""

from app.chassis.migrate import run_environment
from app.models import Base
from app.settings import Settings

run_environment(Base.metadata, Settings)
