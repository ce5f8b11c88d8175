"""The tables in docs/ name every test of a fault and of a stream, and no other."""

import re
import subprocess
import sys

import pytest

from support import ROOT

HEADERS = {
    "reliability.md": ["Fault", "The service", "Lost at most", "Measured", "Tests"],
    "streaming.md": ["Promise", "How", "Measured", "Tests"],
}
MODULES = {
    "reliability.md": ["tests/faults"],
    "streaming.md": ["tests/service/test_streams.py", "tests/service/test_stream_ends.py"],
}


def rows(page: str) -> list[list[str]]:
    """The tables' cells, without their headings."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    return [row for row in cells if row != HEADERS[page]]


def collect(*modules: str) -> set[str]:
    """Every test in them, as pytest itself collects them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "--collect-only",
        "-m",
        "long or not long",
    ]
    done = subprocess.run(
        [*command, *modules], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    return set(re.findall(r"^tests/(?:faults|service)/test_(\w+\.py::\S.*)$", done.stdout, re.M))


@pytest.mark.parametrize("page", HEADERS)
def test_the_table_and_the_tests_agree(page: str) -> None:
    named: dict[str, set[str]] = {}
    collected = collect(*MODULES[page])
    assert collected
    for row in rows(page):
        assert len(row) == len(HEADERS[page]), row
        assert all(row), row
        for name in re.findall(r"`(\w+\.py::[^`]+)`", row[-1]):
            matching = {test for test in collected if test == name or test.startswith(f"{name}[")}
            assert matching, f"{name} is in the table, and no test"
            named[name] = matching
    assert collected - set().union(*named.values()) == set()
