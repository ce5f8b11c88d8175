"""Concurrent reads, inserts and read-modify-writes through HTTP: nothing is lost or "locked"."""

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.service import Service, router_added
from support.traffic import COUNTERS, INSERT, MIX, Load

pytestmark = pytest.mark.long

SECONDS = 60.0
INSERT_SECONDS = 3.0
RAW_SECONDS = 1.0

# the same SQLite and the same durability, without anything around it
RAW = """
import sys
import time
from pathlib import Path

from app.chassis.sqlite.driver import open_database

connection = open_database(Path(sys.argv[1]), create=True)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA synchronous=FULL")
connection.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT)")
commits, start = 0, time.monotonic()
while time.monotonic() < start + float(sys.argv[2]):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO notes (text) VALUES ('under load')")
    connection.execute("COMMIT")
    commits += 1
print(commits / (time.monotonic() - start))
"""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed()
    with router_added(project, "counters", COUNTERS):
        yield project


def raw_commits(project: Path, directory: Path) -> float:
    """Commits a second of a bare loop on the same disk."""
    command = [project / ".venv/bin/python", "-c", RAW, directory / "raw.db", str(RAW_SECONDS)]
    done = subprocess.run(command, cwd=project, check=True, capture_output=True, encoding="utf-8")
    return float(done.stdout)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_no_update_is_lost_under_load(
    project: Path,
    tmp_path: Path,
    workers: int,
    record_property: Callable[[str, object], None],
) -> None:
    data = tmp_path / "data"
    variables = {"WORKERS": str(workers), "LOG_LEVEL": "WARNING"}
    with Service(project, data, **variables).wait_until_healthy() as service:
        assert service.client.put("/counter").status_code == 200
        mixed = Load(service.port, MIX, SECONDS).run()
        total = service.client.get("/counter").json()
        before = raw_commits(project, tmp_path)
        inserts = Load(service.port, [INSERT] * 6, INSERT_SECONDS).run()
        after = raw_commits(project, tmp_path)
        service.terminate()
        assert service.ended() == 0

    durable, raw = inserts.done("POST /notes") / INSERT_SECONDS, (before + after) / 2
    record_property("mixed", mixed.figures())
    record_property("reads of the counter a worker", sorted(mixed.workers.values()))
    record_property("inserts alone", inserts.figures())
    record_property("commits/s of a bare loop before and after", f"{before:.0f}, {after:.0f}")
    record_property("durable inserts to bare commits", f"{durable / raw:.0%}")
    assert total == mixed.done("POST /counter") > 0
    assert mixed.stale_reads == 0
    assert not mixed.refused + inserts.refused + mixed.cut + inserts.cut
    assert mixed.busy == inserts.busy == 0
    assert len(mixed.workers) == workers
    with closing(sqlite3.connect(data / "app.db")) as connection:
        (kept,) = connection.execute("SELECT count(*) FROM notes").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert kept == mixed.done("POST /notes") + inserts.done("POST /notes") > 0
    assert "locked" not in service.output()
    assert "busy" not in service.output()
