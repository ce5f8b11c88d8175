# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Continuous copy of the database in a bucket, made by Litestream.

Litestream runs as the parent of the server, so that it sends the last changes after the server
has stopped. Its settings are in litestream.yml. See https://litestream.io/reference/config/.
"""
