# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""How long a stop may take. Each deadline is shorter than the one around it.

Railway sends SIGTERM and kills after the draining time in railway.json (30 s).
"""

from typing import Final

REQUESTS: Final = 18
"""Seconds that a worker gives requests in flight; event streams end at once."""

WORKERS: Final = 20
"""Seconds that gunicorn gives its workers."""

FLUSH: Final = 4
"""Seconds that a bucket then has to take the last changes; without one, none are needed."""

UNREAD: Final = 60
"""Seconds after which a client that takes nothing of its answer is disconnected."""

UNREAD_AT_A_STOP: Final = 2
"""The same while the service stops."""
