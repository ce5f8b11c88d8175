"""The bar: only for a person who waits, and gone when it is done."""

import io
import re
import sys
import time

import pytest

from app.chassis.sqlite import backup
from app.chassis.sqlite.backup import bar, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [(0, 10, "  0%"), (5, 10, " 50%"), (10, 10, "100%"), (12, 10, "100%"), (0, 0, "100%")],
)
def test_the_bar_is_never_more_than_full(done: int, total: int, shown: str) -> None:
    assert bar(done, total).endswith(shown)
    assert len(bar(done, total)) == len(bar(0, 1))


def test_what_is_quick_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    with progress("Copying", lambda: 1, 2):
        pass

    assert terminal.getvalue() == ""


def test_what_takes_longer_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(backup, "SILENT", 0.0)

    with progress("Copying", lambda: 1, 2):
        time.sleep(0.1)

    shown = terminal.getvalue()
    assert re.search(r"\rCopying \[#{15}\.{15}\]  50%", shown)
    assert shown.endswith("\r\x1b[K")


def test_a_log_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(backup, "SILENT", 0.0)

    with progress("Copying"):
        time.sleep(0.05)

    assert log.getvalue() == ""
