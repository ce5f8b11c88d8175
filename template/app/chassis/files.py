# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Function for files that have to be there after a power cut."""

import os
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Sync the directory's entries to the disk. A rename is not on the disk when it returns."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
