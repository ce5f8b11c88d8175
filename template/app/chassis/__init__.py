# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Chassis of the service, with start-up, settings, database, health, HTTP and streaming.

Every file in this directory belongs to the template and is replaced by
`copier update`. Extend the service in app/main.py, app/settings.py, app/api/
and app/models.py instead.
"""
