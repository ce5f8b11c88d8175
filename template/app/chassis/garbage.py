# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Python's garbage collector, where it would look at the same objects for nothing."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def none_made() -> Iterator[None]:
    """For imports, whose objects are all kept: they are not looked at, now or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
