"""Replication to a real S3 server, and the restore of a lost volume."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service import DEADLINE, FORMS, Service, free_port
from support import tool

pytestmark = pytest.mark.long

# two of Litestream's: what is written in the first second after a start may come later
INTERVAL = 2.0
KEY, SECRET = "key", "hunter2-is-the-secret"


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a bucket on this machine."""
    (tmp_path / "s3" / "copies").mkdir(parents=True)
    address = f"127.0.0.1:{free_port()}"
    command = [tool("rclone"), "serve", "s3", "--auth-key", f"{KEY},{SECRET}"]
    with (tmp_path / "rclone.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--addr", address, tmp_path / "s3"], stdout=log, stderr=subprocess.STDOUT
        )
    host, _, port = address.partition(":")
    deadline = time.monotonic() + DEADLINE
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                break
        assert time.monotonic() < deadline, (tmp_path / "rclone.log").read_text()
        time.sleep(0.05)
    yield {
        "LITESTREAM_BUCKET": "copies",
        "LITESTREAM_ENDPOINT": f"http://{address}",
        "LITESTREAM_REGION": "us-east-1",
        "LITESTREAM_ACCESS_KEY_ID": KEY,
        "LITESTREAM_SECRET_ACCESS_KEY": SECRET,
        "LITESTREAM_FORCE_PATH_STYLE": "true",
        # what people have set for other tools must not get in Litestream's way
        "AWS_CA_BUNDLE": "/nonexistent/bundle.crt",
    }
    server.kill()
    server.wait()


@pytest.fixture
def project(installed: Callable[..., Path]) -> Path:
    return installed(backup="litestream", builder="railpack", workers=4, volume_path="/mnt/vol-1")


def test_a_lost_volume_comes_back(project: Path, tmp_path: Path, bucket: dict[str, str]) -> None:
    volume = tmp_path / "volume"
    with Service(project, volume, **bucket).wait_until_healthy() as service:
        service.wait_for("replicating to")
        for number in range(20):
            assert service.client.post("/notes", json={"text": str(number)}).status_code == 201
        time.sleep(INTERVAL)
        service.terminate()
        assert service.ended() == 0
        assert SECRET not in service.output()
    shutil.rmtree(volume)

    with Service(project, volume, **bucket).wait_until_healthy() as service:
        assert texts(service) == [str(number) for number in range(20)]
        assert "Restored" in service.output()


def run(project: Path, volume: Path, bucket: dict[str, str], *arguments: str) -> None:
    """A command of the project on the volume."""
    with Service(project, volume, [*FORMS["exec"], *arguments], **bucket) as command:
        assert command.ended() == 0, command.output()


def texts(service: Service) -> list[str]:
    return [note["text"] for note in service.client.get("/notes").json()]


def test_the_bucket_follows_a_restored_copy(
    project: Path, tmp_path: Path, bucket: dict[str, str]
) -> None:
    volume, copy = tmp_path / "volume", tmp_path / "copy.db"
    with Service(project, volume, **bucket).wait_until_healthy() as service:
        service.client.post("/notes", json={"text": "in the copy"})
        run(project, volume, bucket, "backup", str(copy))
        service.client.post("/notes", json={"text": "taken back by the restore"})
        time.sleep(INTERVAL)
        service.terminate()
        assert service.ended() == 0
    run(project, volume, bucket, "restore", str(copy))

    with Service(project, volume, **bucket).wait_until_healthy() as service:
        assert texts(service) == ["in the copy"]
        service.client.post("/notes", json={"text": "after the restore"})
        time.sleep(INTERVAL)
        service.terminate()
        assert service.ended() == 0
    shutil.rmtree(volume)

    with Service(project, volume, **bucket).wait_until_healthy() as service:
        assert texts(service) == ["in the copy", "after the restore"]


@pytest.mark.parametrize(
    "wrong",
    [{"LITESTREAM_SECRET_ACCESS_KEY": "wrong"}, {"LITESTREAM_BUCKET": "missing"}],
    ids=["secret", "bucket"],
)
def test_a_bucket_that_cannot_be_asked_stops_the_start(
    project: Path, tmp_path: Path, bucket: dict[str, str], wrong: dict[str, str]
) -> None:
    volume = tmp_path / "volume"
    with Service(project, volume, **bucket | wrong) as service:
        assert service.ended() == 1
        assert "Restore: the bucket's copy could not be read" in service.output()
        assert "Traceback" not in service.output()
        assert SECRET not in service.output()
    assert not (volume / "app.db").exists()
