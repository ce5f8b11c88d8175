# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Name that services made before 0.5.0 import from here. New code takes it of app.chassis."""

from app.chassis.assembly import ChassisSettings

__all__ = ["ChassisSettings"]
