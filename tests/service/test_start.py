"""The start command in every form in which a platform runs it, from first second to last."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from support import mostly_long
from support.service import DEADLINE, FORMS, Service, router_added

SLOW_ROUTE = """
import time
from fastapi import APIRouter

router = APIRouter()


@router.get("/slow")
def slow() -> str:
    time.sleep(3)
    return "finished"
"""

PRODUCTION = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "b7ad4f8e0c1d4e2f9a3b5c6d7e8f9012",
    "BACKEND_URL": "https://api.example.com",
}


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    """The default project with a slow route of its owner's."""
    project = installed()
    with router_added(project, "slow", SLOW_ROUTE):
        yield project


@pytest.mark.parametrize("form", mostly_long(list(FORMS)))
def test_it_serves_and_ends_whatever_runs_it(project: Path, tmp_path: Path, form: str) -> None:
    with Service(project, tmp_path / "data", FORMS[form]).wait_until_healthy() as service:
        assert service.client.post("/notes", json={"text": form}).status_code == 201
        service.terminate()
        assert service.ended() == 0


@pytest.mark.long
def test_without_port_it_listens_on_8000(project: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000 is in use on this machine")
    with Service(project, tmp_path / "data", port=8000) as service:
        service.wait_until_healthy()


@pytest.mark.long
def test_it_answers_over_ipv4_and_ipv6(project: Path, tmp_path: Path) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with Service(project, tmp_path / "data").wait_until_healthy() as service:
        assert httpx.get(f"http://[::1]:{service.port}/health/live").status_code == 200


def test_what_is_in_flight_is_finished(project: Path, tmp_path: Path) -> None:
    with Service(project, tmp_path / "data").wait_until_healthy() as service:
        service.client.post("/notes", json={"text": "first"})
        answers: list[str] = []
        slow = threading.Thread(target=lambda: answers.append(service.client.get("/slow").text))
        with httpx.stream("GET", f"{service.url}/notes/stream", timeout=DEADLINE) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: note"
            slow.start()
            service.client.get("/health/live")  # the slow request is under way before this one
            service.terminate()
            assert "event: shutdown" in list(lines)
        slow.join()

        assert answers == ['"finished"']
        assert service.ended() == 0


def test_production_keeps_its_promises(project: Path, tmp_path: Path) -> None:
    """As in a container: the volume has to be a mount, so the root directory serves as one."""
    variables = PRODUCTION | {"VOLUME_PATH": "/", "LOG_FORMAT": ""}
    with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
        health = service.client.get("/health").json()
        assert health["status"] == "ok"
        assert health["environment"] == "production"
        for page in ("/docs", "/redoc", "/openapi.json"):
            assert service.client.get(page).status_code == 404
        assert service.client.get("/health", headers={"Host": "evil.example"}).status_code == 400
        forged = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6"}
        service.client.get("/notes", headers=forged)
        service.terminate()
        assert service.ended() == 0

    entries = service.entries()
    (access,) = (entry for entry in entries if entry.get("path") == "/notes")
    assert access["client"] == "127.0.0.1"
    assert {entry["level"] for entry in entries} <= {"info", "warning"}
    assert PRODUCTION["SECRET_KEY"] not in service.output()


def test_production_without_a_mounted_volume_is_refused(project: Path, tmp_path: Path) -> None:
    volume = tmp_path / "data"
    variables = PRODUCTION | {"VOLUME_PATH": str(volume)}
    with Service(project, volume, **variables) as service:
        assert service.ended() == 1
        assert f"no volume is mounted at {volume}" in service.output()
        assert "Traceback" not in service.output()


def test_an_application_that_does_not_start_is_a_failed_deploy(
    project: Path, tmp_path: Path
) -> None:
    slow = project / "app" / "api" / "slow.py"
    before = slow.read_text(encoding="utf-8")
    slow.write_text("raise RuntimeError('broken on purpose')\n", encoding="utf-8")
    try:
        with Service(project, tmp_path / "data") as service:
            assert service.ended() != 0
            assert "broken on purpose" in service.output()
    finally:
        slow.write_text(before, encoding="utf-8")


def test_a_killed_worker_is_replaced(project: Path, tmp_path: Path) -> None:
    with Service(project, tmp_path / "data").wait_until_healthy() as service:
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
        for worker in children.read_text().split():
            os.kill(int(worker), signal.SIGKILL)
        service.wait_for("was sent SIGKILL")
        service.wait_until_healthy()
