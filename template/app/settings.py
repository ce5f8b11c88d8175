"""Settings of the service. Add a field here and a line to .env.example."""

from app.chassis import ChassisSettings


class Settings(ChassisSettings):
    """Settings, read once at start. Each field is an environment variable in capitals."""
