# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Alembic's entry point. The work is done in app/chassis/migrate.py."""

from app.chassis.migrate import run_environment
from app.models import Base
from app.settings import Settings

run_environment(Base.metadata, Settings)
