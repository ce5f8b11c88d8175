# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Names of the service that the chassis needs. No other module imports them.

Each is imported when it is needed, because a command must be able to say what is wrong with one.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from sqlalchemy import MetaData

    from app.chassis.replication import ChassisSettings


def settings_class() -> "type[ChassisSettings]":
    """Return `Settings` of app/settings.py."""
    from app.settings import Settings

    return Settings


def make_application(settings: "ChassisSettings | None" = None) -> "FastAPI":
    """Return what `create_app` of app/main.py makes with these settings, or else with its own."""
    from app.main import create_app

    return create_app(settings)  # type: ignore[arg-type]


def metadata() -> "MetaData":
    """Return the tables of `Base` of app/models.py."""
    from app.models import Base

    return Base.metadata
