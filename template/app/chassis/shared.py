# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Memory that a container's workers share, made by gunicorn's first process before it forks."""

import mmap
from typing import Final

HEALTH: Final = mmap.mmap(-1, 1024)
"""State of /health that the log was told last, as text. It is all zero if it was never ill."""
