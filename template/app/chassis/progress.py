# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Progress bar for work that takes longer than a second, for people who watch a terminal."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SILENT: Final = 1.0
"""Seconds before anything is shown."""

WIDTH: Final = 30


@contextmanager
def progress(label: str, done: Callable[[], int] | None = None, total: int = 0) -> Iterator[None]:
    """Show a bar on stderr while the block runs, if stderr is a terminal.

    Args:
        label: Name of the work.
        done: Function that returns the amount done by now. If it is None, the seconds are shown.
        total: Total amount, in the same unit.
    """
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    painter = threading.Thread(target=paint, args=(label, done, total, ended), daemon=True)
    painter.start()
    try:
        yield
    finally:
        ended.set()
        painter.join()


def paint(label: str, done: Callable[[], int] | None, total: int, ended: threading.Event) -> None:
    started = time.monotonic()
    if ended.wait(SILENT):
        return
    while True:
        if done is None:
            line = f"{label} {time.monotonic() - started:.0f} s"
        else:
            line = f"{label} {bar(done(), total)}"
        # This returns to the line's start, and clears the rest of the line
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()
        if ended.wait(0.2):
            break
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()


def bar(done: int, total: int) -> str:
    """Return the bar and the percentage, which is never more than 100."""
    share = min(1.0, done / total) if total else 1.0
    filled = round(share * WIDTH)
    return f"[{'#' * filled}{'.' * (WIDTH - filled)}] {share:4.0%}"
