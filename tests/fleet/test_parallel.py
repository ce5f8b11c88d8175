"""Jobs in processes: none of them takes another one down."""

import os
import signal
import subprocess
import sys
import time
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


def take(number: int) -> int:
    match number:
        case 1:
            time.sleep(600)
        case 2:
            subprocess.run(["sleep", "599.5"], check=True)
        case 3:
            return len(bytearray(2**40))
    return number


@pytest.mark.long
def test_a_job_is_bounded_and_the_others_are_done() -> None:
    results = parallel.run(take, range(6), processes=2, label="Taking", seconds=20)
    assert [str(results[number]) for number in (1, 2)] == ["it took too long, and was ended"] * 2
    assert str(results[3]) == "it takes more than 2048 MB"
    assert [results[number] for number in (0, 4, 5)] == [0, 4, 5]
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 599.5" not in listed.stdout


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
