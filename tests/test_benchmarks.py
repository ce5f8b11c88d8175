"""The benchmarks say what was measured: a lost run counts as lost, and a missed target is shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.load import Load
from benchmarks.runs import Effort, Result, Target, interleave
from benchmarks.serving import Pressed, faults
from support import ROOT


def test_sides_take_turns() -> None:
    order = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    found = interleave(3, lambda: side("a"), lambda: side("b"))
    assert order == ["a", "b"] * 3
    assert found == [[1, 3, 5], [2, 4, 6]]


def test_the_ratio_is_the_pairs_and_not_the_medians() -> None:
    """The machine was slow for the second pair, and within the third."""
    result = Result()
    result.add("rate", "1/s", [100, 10, 90], [200, 20, 60], "other", Target("at most", 1))
    (row,) = result.rows
    assert row.ratios == [0.5, 0.5, 1.5]
    assert row.ratio == 0.5
    assert row.met


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("at least", 2), True),
        (Target("at least", 2.1), False),
        (Target("at most", 2), True),
        (Target("at most", 1.9), False),
        (Target("at most", 10, "value"), True),
        (Target("at most", 9, "value"), False),
        (None, None),
    ],
)
def test_a_target_is_met_or_missed(target: Target | None, met: bool | None) -> None:
    result = Result()
    result.add("time", "s", [10, 10, 10], [5, 5, 5], "other", target)
    assert result.rows[0].met is met


def test_a_run_with_an_error_is_lost() -> None:
    good = Pressed(Load(1000, 1.0, 1.0, 2.0, refused=0, broken=0), 100, 50)
    bad = Pressed(Load(1000, 1.0, 1.0, 2.0, refused=1, broken=0), 100, 50)
    broken = Pressed(Load(0, 1.0, 0.0, 0.0, refused=0, broken=0), 0, 50)
    result = Result(errors=faults("ours", [good, bad, broken]))
    assert result.errors == [
        "ours, run 2 of 3: 1 answers from 400 on",
        "ours, run 3 of 3: no request was answered",
    ]
    result.add("rate", "1/s", [10, 10, 10], [5, 5, 5], "other", Target("at least", 1))
    assert result.rows[0].met is False
    assert "lost" in report.as_text("bad", result)


@pytest.mark.parametrize("errors", [[], ["ours, run 1 of 2: 3 answers from 400 on"]])
def test_a_lost_run_is_the_exit_code(
    errors: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(BENCHMARKS, "trivial", lambda _: Result(errors=errors))
    assert main(["trivial", "--json", str(tmp_path / "results.json")]) == bool(errors)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["trivial"]["errors"] == errors


def test_quick_figures_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    efforts: list[Effort] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    monkeypatch.setitem(BENCHMARKS, "trivial", lambda effort: efforts.append(effort) or Result())
    assert main(["trivial", "--quick"]) == 0
    assert efforts[0].quick
    assert "Quick" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_results_are_read_back_as_they_were(tmp_path: Path) -> None:
    result = Result(notes=["a note"])
    result.add("time", "s", [1.5, 2], [3, 4], "other", Target("at most", 2))
    result.add("memory", "MB", [70], target=Target("at most", 80, "value"))
    report.keep("some", result, tmp_path / "results.json")
    read = Result.load(report.load(tmp_path / "results.json")["some"])
    assert read == result


def test_an_unknown_name_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "trivia"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "trivia" in done.stderr
    assert "trivial" in done.stderr


@pytest.mark.long
def test_a_quick_run(tmp_path: Path) -> None:
    kept = tmp_path / "quick.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", str(kept), "copy", "trivial"],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(kept.read_text())) == {"copy", "trivial"}
