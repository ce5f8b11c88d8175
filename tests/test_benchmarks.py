"""The benchmarks say what was measured: a lost run counts as lost, and a missed target is shown."""

import json
import os
import platform
import random
import resource
import sqlite3
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import pytest
import yaml

from benchmarks import charts, image, peers, report, sides, soaking, streaming
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.load import Load
from benchmarks.runs import Effort, Result, Target, interleave
from benchmarks.serving import Pressed, faults
from support import ROOT

PACKAGES = "app/.venv/lib/python3.13/site-packages"


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
    good = Pressed(Load(1000, 1.0, 1.0, 2.0, refused=0, broken=0), 100, 50, 5)
    bad = Pressed(Load(1000, 1.0, 1.0, 2.0, refused=1, broken=0), 100, 50, 5)
    broken = Pressed(Load(0, 1.0, 0.0, 0.0, refused=0, broken=0), 0, 50, 5)
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


def test_the_committed_charts_and_table_are_those_of_the_results() -> None:
    for path, text in report.pages(report.load(), BENCHMARKS).items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: python -m benchmarks --draw"


def made() -> dict[str, Result]:
    """Results with every chart's rows, one of them missed and one of them lost."""
    mixed, workers, lost = Result(), Result(), Result(errors=["a run"])
    mixed.add("requests a second", "1/s", [300], [100], "other", Target("at least", 2))
    mixed.add("memory (PSS)", "MB", [80], [100], "other", Target("at most", 0.25))
    workers.add("1 worker: requests a second", "1/s", [301])
    lost.add("requests <a second>", "1/s", [302], [100], "other", Target("at least", 2))
    return {"mixed": mixed, "workers": workers, "trivial": lost}


def test_charts_show_what_is_met_and_missed_and_nothing_lost() -> None:
    drawn = {name: chart(made()) for name, chart in charts.CHARTS.items()}
    for chart in drawn.values():
        ElementTree.fromstring(chart)
        assert "prefers-color-scheme:dark" in chart
        assert "Not measured" not in chart
    assert "302" not in "".join(drawn.values())
    assert all(text in drawn["skeleton.svg"] for text in (">300<", ">100<", ">80<"))
    assert ">301<" in drawn["workers.svg"]
    assert drawn["targets.svg"].count('class="ours"') == 1
    assert drawn["targets.svg"].count('class="missed"') == 1
    assert ">1.5<" in drawn["targets.svg"]
    assert ">0.312<" in drawn["targets.svg"]


def test_the_table_says_where_and_what_is_not_measured(tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    for name, result in made().items():
        report.keep(name, result, kept)
    stored = report.load(kept)
    table = report.as_table(stored, ["mixed", "trivial", "soak"])
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {7}
    assert [row[-1].removesuffix(" |") for row in rows[2:]] == [
        "met",
        "missed",
        "lost: a run saw an error",
    ]
    assert "Not measured yet: `soak`" in table
    assert f"Python {platform.python_version()}" in table
    assert "`mixed`" in report.loads(stored)


def test_projects_quote_rough_medians() -> None:
    assert [report.rough(value) for value in (3215, 346.8, 95.4)] == ["3,200", "350", "95"]
    results = {"trivial": Result(), "mixed": Result()}
    for result in results.values():
        result.add("requests a second", "1/s", [9999, 1234, 1])
        result.add("99 % answered within", "ms", [345])
    lines = report.measured(results).splitlines()[1:]
    assert [line.split("'")[1] for line in lines] == ["1,200", "1,200", "340"]
    runbook = (ROOT / "template" / "RUNBOOK.md.jinja").read_text(encoding="utf-8")
    assert all(f"{{{{ {name} }}}}" in runbook for name in report.QUOTED)


def with_four_workers(*errors: str) -> Result:
    result = Result(errors=list(errors))
    for number in range(1, 5):
        name = f"{number} worker{'s' if number > 1 else ''}"
        result.add(f"{name}: requests a second", "1/s", [1000 * number, 9999, 1])
        result.add(f"{name}: 99 % within", "ms", [123.4])
        result.add(f"{name}: memory (PSS)", "MB", [76.2 * number])
    return result


def test_the_workers_question_and_the_page_are_written_from_the_results(tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    report.keep("workers", with_four_workers(), kept)
    written = report.pages(report.load(kept), ["workers"])
    before = yaml.safe_load(report.QUESTIONS.read_text(encoding="utf-8"))
    after = yaml.safe_load(written[report.QUESTIONS])
    lines = after["workers"].pop("help").splitlines()
    for number in range(2, 5):
        cost = f"{number * 0.762:.2f}"
        figures = f"{number},000 requests/s, 99 % in 123 ms, {number * 76.2:.0f} MB"
        assert f"{number} workers: {figures}, {cost} USD a month" in lines
        row = f"| {number} workers | {number},000 | 123 | {number * 76.2:.0f} | {cost} |"
        assert row in written[report.PAGE]
    assert lines[-1] == before["workers"].pop("help").splitlines()[-1]
    assert after == before


def test_a_lost_run_is_not_quoted(tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    report.keep("workers", with_four_workers("2 workers: 3 updates lost"), kept)
    written = report.pages(report.load(kept), ["workers"])
    assert report.QUESTIONS not in written
    assert "USD a month" not in written[report.PAGE]


def test_the_workers_question_says_what_was_measured() -> None:
    stored = report.load()
    if "workers" not in stored:
        pytest.skip("workers is not measured yet")
    asked = yaml.safe_load(report.QUESTIONS.read_text(encoding="utf-8"))["workers"]["help"]
    quoted = [line for line in asked.splitlines() if "requests/s" in line]
    assert [line.split(":")[0] for line in quoted] == [
        "1 worker",
        *(f"{number} workers" for number in (2, 3, 4)),
    ]
    measured = report.workers_help(Result.load(stored["workers"]))
    assert quoted == [line.strip() for line in measured.splitlines()]
    assert "on two cores" in asked
    assert stored["workers"]["cores"] == 2


def test_too_few_open_files_are_the_reason() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 2**30
    with (
        pytest.raises(OSError, match=f"only {hard} open files"),
        streaming.files_allowed(hard + 1),
    ):
        pass


def test_a_soak_is_a_day_with_a_request_a_second() -> None:
    assert soaking.RATE * Effort().minutes * 60 == 24 * 60 * 60
    chance = random.Random(1)
    sent = Counter(soaking.one_of_the_mix(chance).split()[0] for _ in range(1000))
    assert 650 < sent[b"GET"] < 750


def test_a_peer_that_does_not_work_is_a_note_of_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def bounded(_: Path, *command: str | Path, cwd: Path) -> None:
        sides.run(
            "sh", "-c", "echo 'error: too old' >&2; echo '  hint: newer' >&2; exit 2", cwd=cwd
        )

    monkeypatch.setattr(peers, "bounded", bounded)
    result = Result()
    assert peers.all_ready(result, Path(sys.executable), tmp_path) == []
    assert len(result.notes) == len(peers.PEERS)
    for peer, note in zip(peers.PEERS, result.notes, strict=True):
        assert "\n" not in note
        assert note.startswith(f"{peer.name}: sh -c")
        assert note.endswith(": error: too old")
        assert str(tmp_path) not in note


def test_a_step_of_a_peer_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "MINUTES", 0.002)
    with pytest.raises(RuntimeError, match="sleep 9: exit 124"):
        peers.bounded(Path(sys.executable), "sleep", "9", cwd=tmp_path)


def test_a_peer_starts_as_its_procfile_says_on_this_machine_only() -> None:
    text = "web: uvicorn main:app --host 0.0.0.0 --port $PORT\nworker: sleep\n"
    command = "uvicorn main:app --host 127.0.0.1 --port 8001"
    assert peers.procfile(text, 8001) == command.split()


@pytest.mark.parametrize(("written", "lost"), [(2, 1), (3, 0), (4, 0)])
def test_an_insert_that_was_acknowledged_and_is_not_there_is_lost(
    written: int, lost: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        connection.execute("CREATE TABLE notes (text)")

        def pressing(*_: object) -> Any:
            def measure() -> Pressed:
                with connection:
                    connection.executemany("INSERT INTO notes VALUES (?)", [("a",)] * written)
                return Pressed(Load(9, 1.0, 1.0, 2.0, refused=0, broken=0, inserted=3), 100, 50, 5)

            return measure

        monkeypatch.setattr(peers, "pressing", pressing)
        side = peers.Side("ours", lambda: pytest.fail("it is running"), tmp_path, peers.NOTES)
        counted = peers.tabling(cast("sides.Server", None), side, 1)
        assert [counted()[1], counted()[1]] == [lost, lost]


def test_layers_are_measured_packed_and_unpacked(tmp_path: Path) -> None:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in (f"{PACKAGES}/some/a.py", f"{PACKAGES}/some/a.pyc", "etc/passwd"):
            member = tarfile.TarInfo(name)
            member.size = 1000
            archive.addfile(member, BytesIO(bytes(1000)))
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": "sha256:layer",
        "size": len(packed.getvalue()),
    }
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / "layer").write_bytes(packed.getvalue())
    (blobs / "manifest").write_text(json.dumps({"layers": [layer]}))
    index = {"manifests": [{"digest": "sha256:manifest"}]}
    (tmp_path / "index.json").write_text(json.dumps(index))

    (found,) = image.layers(tmp_path)

    assert (found.packed, found.unpacked, found.bytecode) == (layer["size"], 3000, 1000)
    assert found.parts == {"some": 2000, "etc/passwd": 1000}


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


def test_a_row_without_a_unit_is_read_as_it_was_kept() -> None:
    result = Result()
    result.add("updates lost", "", [0, 0], [3, 4], "skeleton", Target("at most", 0, "value"))
    assert Result.load(result.dump()) == result
