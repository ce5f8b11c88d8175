"""The service's own settings: add a field here and a line to .env.example and README.md."""

from app.chassis import ChassisSettings


class Settings(ChassisSettings):
    """Read once at start; each field is an environment variable in capitals."""
