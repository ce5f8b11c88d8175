# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Memory that a container's workers share: gunicorn's first process makes it before it forks."""

import mmap
from typing import Final

HEALTH: Final = mmap.mmap(-1, 1024)
"""The state of /health that the log was told last, as text; all zero while it was never ill."""
