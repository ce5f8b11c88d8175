# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Python's garbage collector, where it would look for what is not there."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """For imports: nearly all that they make is kept, and looking through it takes a while."""
    gc.disable()
    try:
        yield
    finally:
        # to the oldest objects: as new ones, all would be looked through at once
        gc.freeze()
        gc.unfreeze()
        gc.enable()
