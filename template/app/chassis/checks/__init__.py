# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Every known way to go wrong on the platform, looked for by `python -m app check`."""
