# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Databases and values that the tests of a service need."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from dotenv import dotenv_values
from pydantic_settings import BaseSettings
from sqlalchemy.orm import Session

from app.chassis import assembly
from app.chassis.settings import PROJECT_ROOT
from app.chassis.variables import variable

Result = TypeVar("Result")


def new_database(directory: Path) -> str:
    """Return the DATABASE_URL of a new, empty database for a test.

    Args:
        directory: The test's own directory. A database that is a file is made there.
    """
    return assembly.engine.new_database(directory)


def outside(settings: assembly.ChassisSettings, function: Callable[[Session], Result]) -> Result:
    """Call a function with a writing session outside of the application, and return its result."""
    database = assembly.engine.open(settings)
    try:
        with database.write() as session:
            return function(session)
    finally:
        database.dispose()


def database_gone(settings: assembly.ChassisSettings) -> AbstractContextManager[None]:
    """Return a context in which the database of a test is away."""
    return assembly.engine.database_gone(settings)


def required_variables(settings: type[BaseSettings]) -> dict[str, str]:
    """Return the values in .env.example for the settings that have no default."""
    fields = settings.model_fields.items()
    required = [variable(settings, name) for name, field in fields if field.is_required()]
    given = dotenv_values(PROJECT_ROOT / ".env.example") if required else {}
    return {name: value for name in required if (value := given.get(name))}
