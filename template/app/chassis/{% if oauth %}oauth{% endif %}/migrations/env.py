"""Alembic's entry point for the feature's tables. The work is done in app/chassis/migrate.py."""

from app import models
from app.chassis.migrate import run_environment
from app.settings import Settings

run_environment(models.Base.metadata, Settings)
