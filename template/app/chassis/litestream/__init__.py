# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Litestream: a continuous copy of the database in a bucket.

It runs as the parent of the server, so that it sends the last changes after the server has
stopped. Configured by litestream.yml; see https://litestream.io/reference/config/.
"""
