# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Names that services made before 0.5.0 import from here. New code takes them of app.chassis."""

from app.chassis.assembly import ChassisSettings, signed_in

__all__ = ["ChassisSettings", "signed_in"]
