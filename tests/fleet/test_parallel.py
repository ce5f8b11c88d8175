"""Jobs in processes: none of them takes another one down."""

import os
import signal
import sys
from pathlib import Path

import pexpect
import pytest
from commands import Run

from support import ROOT
from trackbed import parallel
from trackbed.errors import ServiceError


def work(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 4:
        raise KeyError("four")
    return number * number


def test_results_are_in_order_and_failures_are_their_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    results = parallel.run(work, range(8), processes=2, label="Working")

    failed = {number: str(result) for number, result in enumerate(results) if number in (3, 4)}
    assert failed == {3: "its process was killed", 4: "unexpected: KeyError: 'four'"}
    assert all(isinstance(results[number], ServiceError) for number in failed)
    assert [result for number, result in enumerate(results) if number not in failed] == [
        0,
        1,
        4,
        25,
        36,
        49,
    ]
    # no bar, because this is no terminal
    assert capfd.readouterr().err == ""


def test_a_bar_on_a_terminal(make_service, run_fleet: Run, small: Path) -> None:  # type: ignore[no-untyped-def]
    command = [
        sys.executable,
        "-m",
        "trackbed.cli",
        "fleet",
        "forecast",
        str(make_service("service")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    output = pexpect.run(
        " ".join(command), env=environment, cwd=str(small), timeout=300, encoding="utf-8"
    )
    assert "Forecasting" in output
    assert "0/1" in output
    assert "GO: 1 service: 1 clean" in output
