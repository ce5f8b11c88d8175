# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Pause of Python's garbage collector while there is no garbage to find."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the garbage collector during imports.

    Nearly all objects that imports make are kept, and it takes a while to look through them.
    """
    gc.disable()
    try:
        yield
    finally:
        # These two calls make the new objects old, or all would be looked through at once
        gc.freeze()
        gc.unfreeze()
        gc.enable()
