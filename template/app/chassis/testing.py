# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Values that the tests of a service need."""

from dotenv import dotenv_values
from pydantic_settings import BaseSettings

from app.chassis.settings import PROJECT_ROOT
from app.chassis.variables import variable


def required_variables(settings: type[BaseSettings]) -> dict[str, str]:
    """Return the values in .env.example for the settings that have no default."""
    fields = settings.model_fields.items()
    required = [variable(settings, name) for name, field in fields if field.is_required()]
    given = dotenv_values(PROJECT_ROOT / ".env.example") if required else {}
    return {name: value for name in required if (value := given.get(name))}
