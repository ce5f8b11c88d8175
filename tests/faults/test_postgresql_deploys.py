"""Deploys under load, with old and new replicas side by side as at Railway: nobody notices."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.edge import edge
from support.postgres import Server
from support.service import Service, router_added
from support.traffic import COUNTERS, MIX, Load, following

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

DEPLOYS = 10
REPLICAS = 2
DELAY = 5.0
"""Seconds for which a replica goes on after SIGTERM; in production twice as many."""

APART = 1.0
"""Seconds between SIGTERM and the switch."""

CLIENTS = 8
PAUSE = 0.05
STREAMS = 4


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed(database="postgresql")
    with router_added(project, "counters", COUNTERS):
        yield project


def test_nobody_notices_ten_deploys(project: Path, tmp_path: Path, record_property: Record) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server())
        addresses = {"DATABASE_URL": server.url, "STOP_DELAY": f"{DELAY:g}", "WORKERS": "1"}

        def deploy(number: int) -> list[Service]:
            """What the platform does before it switches: the pre-deploy command, then replicas."""
            data = tmp_path / str(number)
            migrating = Service(project, data, ["python", "-m", "app", "migrate"], **addresses)
            with migrating:
                assert migrating.ended() == 0, migrating.output()
            services = [
                stack.enter_context(
                    Service(project, data / str(replica), LOG_LEVEL="INFO", **addresses)
                )
                for replica in range(REPLICAS)
            ]
            return [service.wait_until_healthy() for service in services]

        old = deploy(0)
        assert old[0].client.put("/counter").status_code == 200
        front = stack.enter_context(edge(*(service.port for service in old)))
        load = Load(front.port, MIX, float("inf"), CLIENTS, pause=PAUSE, fresh=True)
        stopped: list[Service] = []
        switches = []
        with load.running(), following(front.url, STREAMS) as followers:
            for number in range(1, DEPLOYS + 1):
                new = deploy(number)
                order = ("before", "with", "after")[number % 3]
                if order == "before":
                    terminate(old)
                    time.sleep(APART)
                elif order == "with":
                    terminate(old)
                began = time.monotonic()
                front.lead_to(*(service.port for service in new))
                switches.append(time.monotonic() - began)
                if order == "after":
                    time.sleep(APART)
                    terminate(old)
                stopped += old
                old = new
            for service in stopped:
                assert service.ended() == 0, service.output()
        terminate(old)
        stopped += old
        for service in stopped:
            assert service.ended() == 0, service.output()
            assert "Traceback" not in service.output()
        ends = sum((follower.ends for follower in followers), Counter())
        record_property("load", load.figures())
        record_property("requests refused, cut", f"{load.refused}, {load.cut}, busy {load.busy}")
        record_property("ends of streams", dict(ends))
        record_property("switch, longest (s)", f"{max(switches):.2f}")
        told = front.errors()
        assert not load.refused, told
        assert not load.cut, told
        assert load.busy == 0
        assert load.stale_reads == 0
        assert server.execute("SELECT value FROM counter") == [(load.done("POST /counter"),)]
        kept = [note for (note,) in server.execute("SELECT id FROM notes ORDER BY id")]
        assert len(kept) == load.done("POST /notes") + 3
        for follower in followers:
            start, end = kept.index(follower.ids[0]), kept.index(follower.ids[-1])
            assert follower.ids == kept[start : end + 1]
            assert follower.ids[0] == next(note for note in kept if note > follower.after)
        # A stream stays with a replica that goes on before its stop, and on a fast machine the next
        # deploys happen meanwhile. Each end is the event that says so
        assert ends.keys() <= {"shutdown", "left"}
        assert DEPLOYS <= ends["shutdown"] <= STREAMS * DEPLOYS


def terminate(services: list[Service]) -> None:
    for service in services:
        service.terminate()
