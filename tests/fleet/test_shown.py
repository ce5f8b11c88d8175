"""What services say of themselves is text, wherever it is shown."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Run

from support import ROOT, commit, git
from trackbed.errors import ServiceError, printable

HOSTILE = (
    "\x1b]0;owned\x07",
    "\x1b[2Jx",
    "a\nGO: 1 service",
    "a\r\nb",
    "x\x9b31m",
    "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
    "a\N{LINE SEPARATOR}b",
    "::set-output name=x::y",
    "\t::add-mask::x",
    "##[group]x",
    "x ##vso[task.setvariable variable=a]b",
    "\x7f\x00",
)
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|##\\[|##vso\\[")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_escaped(text: str) -> None:
    shown = printable(text)
    assert not OBEYED.search(shown)
    assert "\n" not in shown
    assert not shown.lstrip().startswith("::")


def test_other_texts_are_as_they_are() -> None:
    for text in ("Grüße, 世界", "tests/test_x.py::test_y", "a: b", "# heading", "fe80::1", "🙂"):
        assert printable(text) == text


@pytest.mark.long
def test_no_report_obeys_a_service(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run, tmp_path: Path
) -> None:
    for number, text in enumerate(HOSTILE):
        fabricate(f"s{number}", backup=json.dumps(text), version=json.dumps(text))
        fabricate(f"t{number}", source=json.dumps(f"https://user:hunter2@x.invalid:1/{text}"))
    services = fabricate("::set-output name=x::\x1b[2J\nname").parent
    answers = services / "s0" / ".copier-answers.yml"
    answers.write_text(answers.read_text() + '"=1+1\\e[2J": "=2+2"\n"d": "\\uFF1D1+1"\n')
    rules = tmp_path / "rules"
    rules.write_text("backup == none\nversion > 1", encoding="utf-8")
    out = tmp_path / "out.html"

    outputs = [
        run_fleet(*command, services, cwd=owner, PYTHONIOENCODING=encoding).stdout
        for encoding in ("utf-8", "ascii")
        for command in (
            ["inventory"], ["inventory", "--json"], ["inventory", "--csv"], ["policy", rules],
            ["drift", "--ownership", ROOT / "ownership.toml"], ["report", out],
        )
    ]  # fmt: skip

    for output in outputs:
        assert output
        assert not OBEYED.search(output.replace("\r\n", "\n")), output
        assert "hunter2" not in output
        assert not [line for line in output.splitlines() if line.lstrip().startswith("::")]
    assert "hunter2" not in out.read_text(encoding="utf-8")
    table = list(csv.reader(io.StringIO(outputs[2])))
    assert len({len(row) for row in table}) == 1
    assert not [cell for row in table for cell in row if cell[:1] in set("=+-@\uff1d")]
    names = {item["name"] for item in json.loads(outputs[1])["services"]}
    assert "::set-output name=x::\x1b[2J\nname" in names


def test_one_long_answer_makes_no_row_longer_for_others(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run, tmp_path: Path
) -> None:
    services = fabricate("long", backup="x" * 200_000).parent
    fabricate("good", backup="x")
    rules = tmp_path / "rules"
    rules.write_text("backup == none", encoding="utf-8")
    done = run_fleet("policy", rules, services, cwd=owner)
    assert len(done.stdout) < 10_000


def test_a_reason_names_no_password() -> None:
    error = ServiceError("cannot read https://me:secret@x.example/y and ssh://a:b@c/d")
    assert str(error) == "cannot read https://x.example/y and ssh://c/d"


def test_only_the_version_differs(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    """Whatever way the version was written, an update that rewrites it loses nothing."""
    candidate = tmp_path / "candidate"
    git(tmp_path, "clone", "--quiet", str(small), str(candidate))
    git(candidate, "commit", "--quiet", "--allow-empty", "--message", "Nothing")
    git(candidate, "tag", "0.2.1")
    paths = []
    first = git(small, "rev-parse", "0.2.0").strip()
    for number, text in enumerate(("0.2.0", first, first[:9], f"0.1.0-1-g{first[:7]}")):
        service = make_service(f"service-{number}", {
            "app/chassis/__init__.py": '"""The chassis."""\n# new in 0.2.0\n',
            "app/main.py": "app = None\n# new in 0.2.0\n",
        })  # fmt: skip
        answers = service / ".copier-answers.yml"
        answers.write_text(answers.read_text().replace("_commit: 0.1.0", f"_commit: {text}"))
        commit(service, "Version")
        paths.append(service)

    done = run_fleet("forecast", "--to", "0.2.1", "--json", *paths, cwd=candidate)

    found = json.loads(done.stdout)
    assert {item["verdict"] for item in found["services"]} == {"clean"}, found
    assert {tuple(item["changed"]) for item in found["services"]} == {(".copier-answers.yml",)}


def test_a_version_that_no_release_has_is_not_green(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run, tmp_path: Path
) -> None:
    rules = tmp_path / "rules"
    rules.write_text("version >= 0.2", encoding="utf-8")
    service = fabricate("service", version="9.9.9")
    gone = fabricate("gone", version="9.9.9", source="/nowhere/x")
    out = tmp_path / "report.html"

    done = run_fleet("policy", rules, service, gone, cwd=owner)
    report = run_fleet("report", out, service, gone, cwd=owner)

    assert done.returncode == 1
    assert done.stdout.count("version is unknown") == 2
    assert "0 up to date" in report.stdout


@pytest.mark.long
def test_nothing_goes_on_after_an_end(
    make_service: Callable[..., Path], small: Path, tmp_path: Path
) -> None:
    """The command's own processes, and the tests that they run, end with it, however it ends."""
    for number, kind in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGKILL)):
        service = make_service(f"service-{number}")
        marks = tmp_path / f"marks-{number}"
        marks.mkdir()
        test = f"sh -c 'echo $$ > {marks}/pid; sleep 600; touch {marks}/went-on'"
        command = ["fleet", "update", str(service), "--test", test, "--template", str(small)]
        process = subprocess.Popen(
            [sys.executable, "-m", "trackbed.cli", *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
            start_new_session=True,
            stderr=subprocess.PIPE,
        )
        until = time.monotonic() + 120
        while not (marks / "pid").exists() or not (marks / "pid").read_text().strip():
            assert time.monotonic() < until
            time.sleep(0.1)
        inner = int((marks / "pid").read_text())
        process.send_signal(kind)
        assert b"Traceback" not in process.communicate(timeout=60)[1]
        assert process.returncode in (128 + kind, -kind)
        until = time.monotonic() + 30
        while alive(inner):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert "template-0.2.0" not in git(service, "branch")


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
