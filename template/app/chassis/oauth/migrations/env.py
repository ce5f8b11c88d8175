# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Alembic's entry point for the feature's tables. The work is done in app/chassis/migrate.py."""

from app import models
from app.chassis.migrate import run_environment
from app.settings import Settings

run_environment(models.Base.metadata, Settings)
