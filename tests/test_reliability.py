"""docs/reliability.md names every fault that is tested, and no other."""

import re
import subprocess
import sys

from support import ROOT

HEADER = ["Fault", "The service", "Lost at most", "Measured", "Tests"]


def rows() -> list[list[str]]:
    """The tables' cells, without their headings."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    return [row for row in cells if row != HEADER]


def collect() -> set[str]:
    """Every test of a fault, as pytest itself collects them."""
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
        [*command, "tests/faults"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    return set(re.findall(r"^tests/faults/test_(\w+\.py::\S.*)$", done.stdout, re.MULTILINE))


def test_the_table_and_the_tests_agree() -> None:
    named: dict[str, set[str]] = {}
    collected = collect()
    assert collected
    for row in rows():
        assert len(row) == len(HEADER), row
        assert all(row), row
        for name in re.findall(r"`(\w+\.py::[^`]+)`", row[-1]):
            matching = {test for test in collected if test == name or test.startswith(f"{name}[")}
            assert matching, f"{name} is in the table, and no test"
            named[name] = matching
    assert collected - set().union(*named.values()) == set()
