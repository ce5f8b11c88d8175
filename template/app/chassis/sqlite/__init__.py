# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Engine of the database, SQLite on one file."""
