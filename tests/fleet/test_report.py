"""The page about all services: what stands in it, and where it is written."""

import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import Run
from overviews import HOSTILE, NUMBERS, overview, service

from trackbed.errors import FleetError
from trackbed.model import Inventory
from trackbed.report import PAGE, beside, render, require_writable, write


class Elements(HTMLParser):
    """The elements of a page, as a browser meets them, and the texts of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def data_of(page: str) -> Any:
    return json.loads(Elements(page).scripts[0])


def test_the_page_has_what_the_commands_say(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run, tmp_path: Path
) -> None:
    services = fabricate("one", backup="none").parent
    fabricate("two", version="0.2.0-4-gabc1234", features="[oauth, conversations]")
    fabricate("broken", version="[")
    rules = tmp_path / "rules"
    rules.write_text("backup != none", encoding="utf-8")
    out = tmp_path / "report.html"

    done = run_fleet("report", out, services, "--rules", rules, cwd=owner)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{out}: 3 services, 1 up to date, 1 behind, 0 unknown, 1 with problems, 1 break rules\n"
    )
    data = data_of(out.read_text(encoding="utf-8"))
    for command in (["inventory"], ["policy", rules]):
        told = json.loads(run_fleet(*command, services, "--json", cwd=owner).stdout)
        assert data[told["command"]] | {"generated": ""} == told | {"generated": ""}
    assert data["drift"] is data["forecast"] is None
    assert [release["version"] for release in data["releases"]] == ["0.1.0", "0.2.0"]


def test_no_text_is_markup() -> None:
    items = [
        replace(service(text, **{text: text}), where=text, unknown=text, template=text)
        for text in HOSTILE
    ]
    items += [Inventory(name=text, where=text, problem=text) for text in HOSTILE]
    plain, page = Elements(render(overview().document())), render(overview(*items).document())

    assert Elements(page).found == plain.found
    assert page.count("<") == render(overview().document()).count("<")
    assert page.isascii() == PAGE.read_text(encoding="utf-8").isascii()
    services = data_of(page)["inventory"]["services"]
    assert [one["name"] for one in services] == HOSTILE * 2
    assert [one["answers"] for one in services[: len(HOSTILE)]] == [
        {text: text} for text in HOSTILE
    ]


def test_what_yaml_knows_and_json_does_not() -> None:
    odd = {
        "a": float("nan"),
        "b": 2**64,
        "c": {date(2026, 1, 1): date(2026, 1, 2)},
        "d": [1.5, True, None],
    }
    [one] = data_of(render(overview(service("odd", **odd)).document()))["inventory"]["services"]
    assert one["answers"] == {
        "a": "nan",
        "b": "18446744073709551616",
        "c": {"2026-01-01": "2026-01-02"},
        "d": [1.5, True, None],
    }


def test_versions_are_in_the_order_of_their_numbers() -> None:
    items = [replace(service("a"), version=text) for text in ("0.11.0rc1", "0.7", "main", None)]
    assert overview(*items).document()["versions"] == ["0.7", *NUMBERS[:3], "0.11.0rc1", "0.11.0"]


def test_nothing_comes_from_elsewhere_and_nothing_else_runs() -> None:
    page = render(overview().document())
    elements = Elements(page)
    [policy] = [
        attributes["content"]
        for tag, attributes in elements.found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]

    assert set(re.findall(r"\w+://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|\bsrc=|innerHTML|insertAdjacent|document\.write", page)
    assert policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    style = page.split("<style>")[1].split("</style>")[0]
    for text in (elements.scripts[1], style):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foreign.html", "is there already, and is no report: not overwritten"),
        ("directory", "is there already, and is no report: not overwritten"),
        ("nowhere/report.html", "No such file or directory"),
        ("foreign.html/report.html", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_place_where_it_cannot_be(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "foreign.html").write_text("<!doctype html><p>Mine", encoding="utf-8")
    (tmp_path / "directory").mkdir()
    for attempt in (require_writable, lambda file: write(file, "")):
        with pytest.raises(FleetError) as error:
            attempt(tmp_path / name)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "foreign.html"]
    assert (tmp_path / "foreign.html").read_text(encoding="utf-8") == "<!doctype html><p>Mine"


def test_it_is_refused_before_the_work(run_fleet: Run, tmp_path: Path, owner: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("mistaken", encoding="utf-8")
    done = run_fleet("report", "no/report.html", "/nowhere", "--rules", rules, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "trackbed: no/report.html: No such file or directory\n"
    done = run_fleet("report", "report.html", "/nowhere", "--ownership", rules, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "trackbed: --ownership is for --drift\n")


def test_an_earlier_report_is_replaced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "reports"
    directory.mkdir()
    file, link = directory / "report.html", tmp_path / "latest.html"
    link.symlink_to(file)
    before, after = (render(overview(service(name)).document()) for name in ("before", "after"))
    write(file, before)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(FleetError, match="No space left on device"):
            write(file, after)
    assert file.read_text(encoding="utf-8") == before
    assert list(directory.iterdir()) == [file]

    assert beside(link).parent == directory
    with file.open(encoding="utf-8") as reader:
        write(link, after)
        assert reader.read() == before
    assert file.read_text(encoding="utf-8") == after
    assert link.is_symlink()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert list(directory.iterdir()) == [file]
    assert sorted(tmp_path.iterdir()) == [link, directory]


@pytest.mark.long
def test_everything_at_once_is_what_each_command_says(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    services = make_service("same").parent
    make_service("drifted", {"app/chassis/worker.py": "# patched\n"})
    make_service("edited", additions={"app/main.py": "# mine\n"})
    (services / "broken" / ".git").mkdir(parents=True)
    rules = tmp_path / "rules"
    rules.write_text("version >= 0.2", encoding="utf-8")
    out = tmp_path / "report.html"

    options = ("--drift", "--rules", rules, "--to", "0.2.0")
    done = run_fleet("report", out, services, *options, cwd=small)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(
        "4 services, 0 up to date, 3 behind, 0 unknown, 1 with problems, 1 with drift, "
        "3 break rules, NO-GO\n"
    )
    data = data_of(out.read_text(encoding="utf-8"))
    for command in (["inventory"], ["drift"], ["policy", rules], ["forecast", "--to", "0.2.0"]):
        told = json.loads(run_fleet(*command, services, "--json", cwd=small).stdout)
        assert data[told["command"]] | {"generated": ""} == told | {"generated": ""}

    again = run_fleet("report", out, services, "--to", "nothing", cwd=small)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "no tag, branch or commit nothing" in again.stderr
