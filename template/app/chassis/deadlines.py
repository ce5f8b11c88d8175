# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Deadlines of a stop. Each deadline is shorter than the one around it.

Railway sends SIGTERM and kills after the draining time in railway.json (30 s).
"""

from typing import Final

REQUESTS: Final = 18
"""Grace period in seconds for a worker's requests in flight. Event streams end at once."""

WORKERS: Final = 20
"""Grace period in seconds that gunicorn gives its workers."""

FLUSH: Final = 4
"""Seconds that a bucket then has to take the last changes. Without a bucket none are needed."""

UNREAD: Final = 60
"""Seconds after which a client that reads nothing of its answer is disconnected."""

UNREAD_AT_A_STOP: Final = 2
"""Seconds for such a client while the service stops."""
