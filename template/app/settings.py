"""Settings of the service. A field without a default needs a value in .env.example."""

from app.chassis import ChassisSettings


class Settings(ChassisSettings):
    """Settings, read once at start. Each field is an environment variable in capitals."""
