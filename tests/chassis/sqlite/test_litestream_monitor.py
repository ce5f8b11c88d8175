"""What is said about the bucket's copy, for every answer that Litestream can give."""

import json
import logging
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.chassis.application import create_application
from app.chassis.checks.finding import Degraded
from app.chassis.litestream import checks, control
from app.chassis.litestream.control import ControlError, confirm, confirmed_at, flush
from app.chassis.litestream.monitor import REMIND_AFTER, LitestreamMonitor
from app.chassis.litestream.process import binary
from app.settings import Settings

from .databases import make_database

DENIED = "sync database: s3: api error SignatureDoesNotMatch: check your key"


class Litestream(socketserver.ThreadingUnixStreamServer):
    """Answers on the control socket as Litestream 0.5.17 does."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.listed: dict[str, Any] = {"databases": []}
        self.error = ""
        self.asked: list[dict[str, Any]] = []
        super().__init__(str(path), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Litestream

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, self.server.listed if self.path == "/list" else {})

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.error:
            self.answer(500, {"error": self.server.error})
        else:
            self.answer(200, {"status": "no_change"})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def replicated(settings: Settings) -> Settings:
    return settings.model_copy(update={"litestream_bucket": "copies"})


@pytest.fixture
def litestream(replicated: Settings) -> Iterator[Litestream]:
    with Litestream(replicated.control_socket) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    replicated.control_socket.unlink()


def synced(settings: Settings, seconds_ago: float | None) -> dict[str, Any]:
    entry = {"path": str(settings.database_path), "status": "replicating"}
    if seconds_ago is not None:
        moment = datetime.now(UTC) - timedelta(seconds=seconds_ago)
        # nine digits, as Go writes them
        entry["last_sync_at"] = f"{moment:%Y-%m-%dT%H:%M:%S.%f}789Z"
    return {"databases": [entry]}


def test_the_age_is_that_of_the_last_confirmation(
    replicated: Settings, litestream: Litestream
) -> None:
    litestream.listed = synced(replicated, 5)

    details = LitestreamMonitor(replicated).replication()

    assert details["errors"] == 0
    assert isinstance(details["age_seconds"], float)
    assert 5 <= details["age_seconds"] < 10


def test_late_is_degraded_and_not_failed(replicated: Settings, litestream: Litestream) -> None:
    litestream.listed = synced(replicated, 61)
    make_database(replicated)

    with TestClient(create_application(replicated)) as client:
        answer = client.get("/health")
        patient = replicated.model_copy(update={"litestream_max_age": 3600.0})
        assert LitestreamMonitor(patient).replication()

    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    result = answer.json()["checks"]["replication"]
    assert result["status"] == "degraded"
    assert result["details"]["age_seconds"] >= 61


def test_never_confirmed_is_degraded_once_an_attempt_has_failed(
    replicated: Settings, litestream: Litestream, caplog: pytest.LogCaptureFixture
) -> None:
    litestream.listed = synced(replicated, None)
    litestream.error = DENIED
    monitor = LitestreamMonitor(replicated)
    assert monitor.replication() == {"age_seconds": None, "errors": 0}

    monitor.probe()

    with pytest.raises(Degraded, match="has not taken any change") as caught:
        monitor.replication()
    assert caught.value.details == {"age_seconds": None, "errors": 1}
    assert "SignatureDoesNotMatch" not in str(caught.value)
    assert "SignatureDoesNotMatch" in caplog.text


def test_without_litestream_it_is_degraded(replicated: Settings) -> None:
    with pytest.raises(Degraded, match="Litestream does not answer"):
        LitestreamMonitor(replicated).replication()


def test_litestream_can_be_too_busy_with_the_bucket_to_answer(
    replicated: Settings, litestream: Litestream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT", 0.1)
    monkeypatch.setattr(Handler, "do_GET", lambda _: time.sleep(0.5))

    with pytest.raises(Degraded, match="waiting for the bucket"):
        LitestreamMonitor(replicated).replication()


def test_the_log_has_the_first_failure_some_of_the_next_and_the_end(
    replicated: Settings, litestream: Litestream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monitor = LitestreamMonitor(replicated)
    litestream.error = DENIED
    for _ in range(2 * REMIND_AFTER):
        monitor.probe()
    litestream.error = ""
    monitor.probe()
    monitor.probe()

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]
    assert monitor.errors == 0
    asked = {"path": str(replicated.database_path), "wait": True, "timeout": 3}
    assert litestream.asked[-1] == asked


def test_without_a_bucket_nothing_is_watched(settings: Settings) -> None:
    assert LitestreamMonitor(settings).health_checks == {}


def test_another_database_or_no_answer_is_an_error(
    replicated: Settings, litestream: Litestream, tmp_path: Path
) -> None:
    with pytest.raises(ControlError, match="does not replicate this database"):
        confirmed_at(replicated.control_socket, tmp_path / "other.db")
    with pytest.raises(ControlError, match="does not answer"):
        confirm(tmp_path / "nobody.sock", replicated.database_path, 1)


def test_a_stop_waits_for_the_bucket_and_says_how_it_ended(
    replicated: Settings,
    litestream: Litestream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    flush()
    assert caplog.text == ""

    monkeypatch.setenv("LITESTREAM_SOCKET", str(replicated.control_socket))
    monkeypatch.setenv("DATABASE_PATH", str(replicated.database_path))
    flush()
    assert "The bucket has every change" in caplog.text
    litestream.error = DENIED
    flush()
    assert "stopping before the bucket has every change" in caplog.text


def test_the_socket_lies_beside_the_database_if_its_name_fits(tmp_path: Path) -> None:
    def socket_of(directory: Path) -> Path:
        return Settings.load(database_url=f"sqlite:///{directory}/app.db").control_socket

    assert socket_of(Path("/data")) == Path("/data/.app.db-litestream.sock")
    long = tmp_path / ("x" * 100)
    assert len(os.fsencode(socket_of(long))) <= 100
    assert socket_of(long) == socket_of(long)
    assert socket_of(long) != socket_of(tmp_path / ("y" * 100))


def test_a_bucket_that_does_not_answer_is_found_by_check(
    replicated: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "BUCKET_TIMEOUT", 3.0)
    nobody = replicated.model_copy(update={"litestream_endpoint": "http://127.0.0.1:1"})

    found = {finding.id: finding for finding in checks.check(nobody)}

    assert found["backup.litestream"].status == "ok"
    assert found["backup.bucket"].status == "failed"
    assert "backup.newest" not in found
    assert found["clock.bucket"].status == "skipped"
    assert [finding.status for finding in checks.check(Settings())] == ["ok", "warning"]


def test_an_old_or_broken_litestream_is_found_by_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "FIXED_LITESTREAM", (99, 0, 0))
    assert checks.version(binary()).status == "failed"
    assert checks.version(str(tmp_path / "missing")).status == "failed"
    log = "s3: AccessKeyId=hunter2: api error NoSuchBucket: The bucket hunter2"
    assert checks.cause(log) == "NoSuchBucket"
