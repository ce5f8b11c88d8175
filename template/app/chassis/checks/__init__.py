# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks of `python -m app check` for every known way to go wrong on the platform."""
