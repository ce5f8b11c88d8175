# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Files that have to be there after a power cut."""

import os
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Put the directory's entries on the disk: a rename is not, when it returns."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
