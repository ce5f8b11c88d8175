"""The copy in the bucket: what survives when all else is lost, and what is said meanwhile."""

import os
import random
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.buckets import SECRET, Bucket, serving
from support.service import FORMS, Service
from support.writer import Writer, numbers

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

ROUNDS = 12

SYNC = 1.0
"""Seconds: the monitor's interval and the sync's, in litestream.yml."""

WINDOW = 2 * SYNC + 1.0
"""Seconds before a kill from which acknowledged rows may be lost: both, and the upload."""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Path:
    return installed(backup="litestream", builder="railpack", volume_path="/mnt/vol-1")


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    with serving("rclone", tmp_path / "s3") as bucket:
        yield bucket


@pytest.fixture(params=["rclone", "seaweedfs"])
def each_bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    with serving(request.param, tmp_path / "s3") as bucket:
        yield bucket


def kill_everything(service: Service) -> None:
    os.killpg(service.process.pid, signal.SIGKILL)
    service.process.wait()


def stop(service: Service) -> None:
    service.terminate()
    assert service.ended() == 0, service.output()
    assert SECRET not in service.output()


def replication(service: Service) -> dict[str, object]:
    answer = service.client.get("/health")
    assert answer.status_code == 200, answer.text
    return answer.json()["checks"]["replication"]


def wait_for(service: Service, status: str, seconds: float) -> float:
    """How long it takes until /health has this to say of the replica."""
    started = time.monotonic()
    while replication(service)["status"] != status:
        assert time.monotonic() - started < seconds, service.output()[-2000:]
        time.sleep(0.1)
    return time.monotonic() - started


def add(service: Service, number: int) -> None:
    answer = service.client.post("/notes", json={"text": str(number)})
    assert answer.status_code == 201, answer.text


def run(project: Path, volume: Path, bucket: Bucket, *arguments: str) -> str:
    """A command of the project on the volume."""
    with Service(project, volume, [*FORMS["exec"], *arguments], **bucket.variables) as command:
        assert command.ended() == 0, command.output()
        return command.output()


def restored(project: Path, volume: Path, bucket: Bucket) -> list[int]:
    """What the bucket has; nothing if everything was killed before anything was sent."""
    command = [*FORMS["exec"], "restore", "--latest"]
    with Service(project, volume, command, **bucket.variables) as restore:
        if restore.ended() == 1:
            assert "Restore: there is no copy." in restore.output()
            return []
    return numbers(volume / "app.db")


def test_everything_is_killed_and_the_volume_lost(
    project: Path, tmp_path: Path, each_bucket: Bucket, record_property: Record
) -> None:
    chance = random.Random(4)
    volume = tmp_path / "volume"
    kept: list[int] = []
    lost_rows: list[int] = []
    lost_seconds: list[float] = []
    for _ in range(ROUNDS):
        with Service(project, volume, **each_bucket.variables).wait_until_healthy() as service:
            assert numbers(volume / "app.db") == kept
            writer = Writer(service, first=kept[-1] + 1 if kept else 0)
            time.sleep(chance.uniform(0.2, 3.0))
            killed = time.monotonic()
            kill_everything(service)
            writer.stop()
        shutil.rmtree(volume)
        found = restored(project, volume, each_bucket)
        shutil.rmtree(volume)

        acknowledged = [number for number, _ in writer.acknowledged]
        survived = found[len(kept) :]
        # a prefix of what was written, never a hole; the last may be one without an answer
        assert found[: len(kept)] == kept
        assert survived == list(range(survived[0], survived[0] + len(survived))) if survived else 1
        assert not survived or survived[0] == writer.acknowledged[0][0]
        lost = [at for number, at in writer.acknowledged if number not in set(survived)]
        assert all(killed - at <= WINDOW for at in lost), sorted(killed - at for at in lost)
        lost_rows.append(len(lost))
        lost_seconds.append(killed - min(lost) if lost else 0.0)
        assert len(acknowledged) - len(lost) <= len(survived)
        kept = found
    record_property("rounds", ROUNDS)
    record_property("rows kept", len(kept))
    record_property("rows lost a round", sorted(lost_rows))
    record_property(
        "seconds lost a round, median and most",
        f"{statistics.median(lost_seconds):.2f}, {max(lost_seconds):.2f}",
    )
    assert kept


@pytest.mark.parametrize("seconds", [0.0, 2.5], ids=["first-second", "later"])
def test_a_stop_loses_nothing_even_with_the_volume(
    project: Path, tmp_path: Path, each_bucket: Bucket, record_property: Record, seconds: float
) -> None:
    volume = tmp_path / "volume"
    written: list[int] = []
    for _ in range(5):
        with Service(project, volume, **each_bucket.variables).wait_until_healthy() as service:
            time.sleep(seconds)
            for _ in range(5):
                written.append(len(written))
                add(service, written[-1])
            stop(service)
            assert "The bucket has every change" in service.output()
        shutil.rmtree(volume)

    run(project, volume, each_bucket, "restore", "--latest")
    assert numbers(volume / "app.db") == written
    record_property("rows lost", f"0 of {len(written)} in 5 stops")


def test_a_stop_before_litestream_has_looked(project: Path, tmp_path: Path, bucket: Bucket) -> None:
    """Its interval is stretched, so that no look of its own comes between start and stop."""
    volume, configuration = tmp_path / "volume", project / "litestream.yml"
    before = configuration.read_text(encoding="utf-8")
    assert "monitor-interval: 1s" in before
    configuration.write_text(before.replace("monitor-interval: 1s", "monitor-interval: 60s"))
    try:
        with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
            add(service, 1)
            stop(service)
    finally:
        configuration.write_text(before, encoding="utf-8")
    shutil.rmtree(volume)
    run(project, volume, bucket, "restore", "--latest")
    assert numbers(volume / "app.db") == [1]


def test_the_bucket_follows_a_restored_copy(project: Path, tmp_path: Path, bucket: Bucket) -> None:
    volume, copy = tmp_path / "volume", tmp_path / "copy.db"
    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        add(service, 1)
        run(project, volume, bucket, "backup", str(copy))
        add(service, 2)
        stop(service)
    run(project, volume, bucket, "restore", str(copy))
    assert numbers(volume / "app.db") == [1]

    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        add(service, 3)
        stop(service)
    shutil.rmtree(volume)

    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        assert "Restored" in service.output()
        assert numbers(volume / "app.db") == [1, 3]


def test_a_point_in_time_comes_back(project: Path, tmp_path: Path, bucket: Bucket) -> None:
    volume = tmp_path / "volume"
    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        add(service, 1)
        time.sleep(2 * SYNC + 0.5)
        moment = datetime.now(UTC).isoformat()
        add(service, 2)
        stop(service)

    assert "can be restored" in run(project, volume, bucket, "restore", "--at", moment, "--dry-run")
    assert numbers(volume / "app.db") == [1, 2]
    run(project, volume, bucket, "restore", "--at", moment)
    assert numbers(volume / "app.db") == [1]
    with Service(
        project,
        volume,
        [*FORMS["exec"], "restore", "--at", "2026-01-01T00:00:00Z"],
        **bucket.variables,
    ) as command:
        assert command.ended() == 1
        assert "there is no copy of 2026-01-01" in command.output()
    assert numbers(volume / "app.db") == [1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"LITESTREAM_SECRET_ACCESS_KEY": "wrong"},
        {"LITESTREAM_BUCKET": "missing"},
        {"LITESTREAM_ENDPOINT": "http://127.0.0.1:1", "LITESTREAM_RESTORE_TIMEOUT": "5"},
    ],
    ids=["wrong-key", "missing-bucket", "server-down"],
)
def test_a_first_start_without_the_bucket_is_refused(
    project: Path, tmp_path: Path, each_bucket: Bucket, wrong: dict[str, str]
) -> None:
    volume = tmp_path / "volume"
    with Service(project, volume, **each_bucket.variables | wrong) as service:
        assert service.ended() == 1
        assert "Restore: the bucket's copy could not be read" in service.output()
        assert "Traceback" not in service.output()
        assert SECRET not in service.output()
    assert not (volume / "app.db").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"LITESTREAM_SECRET_ACCESS_KEY": "wrong"},
        {"LITESTREAM_BUCKET": "missing"},
        {"LITESTREAM_ENDPOINT": "http://127.0.0.1:1"},
    ],
    ids=["wrong-key", "missing-bucket", "server-down"],
)
def test_a_later_start_without_the_bucket_serves_and_says_so(
    project: Path, tmp_path: Path, bucket: Bucket, record_property: Record, wrong: dict[str, str]
) -> None:
    volume = tmp_path / "volume"
    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        add(service, 1)
        stop(service)

    with Service(project, volume, **bucket.variables | wrong).wait_until_healthy() as service:
        record_property("seconds until degraded", f"{wait_for(service, 'degraded', 10):.1f}")
        add(service, 2)
        service.wait_for("the bucket has not taken every change")
        started = time.monotonic()
        service.terminate()
        assert service.ended() == 0
        record_property("seconds to stop", f"{time.monotonic() - started:.1f}")
        assert time.monotonic() - started < 28
        assert "stopping before the bucket has every change" in service.output()

    # with the right variables again, everything gets there
    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        wait_for(service, "ok", 10)
        stop(service)
    shutil.rmtree(volume)
    run(project, volume, bucket, "restore", "--latest")
    assert numbers(volume / "app.db") == [1, 2]


def test_a_server_that_is_down_for_a_minute(
    project: Path, tmp_path: Path, bucket: Bucket, record_property: Record
) -> None:
    volume = tmp_path / "volume"
    variables = {**bucket.variables, "LITESTREAM_MAX_AGE": "10"}
    with Service(project, volume, **variables).wait_until_healthy() as service:
        writer = Writer(service, pause=0.1)
        time.sleep(3)
        bucket.down()
        went_down = time.monotonic()
        wait_for(service, "degraded", 20)
        record_property("seconds until degraded", f"{time.monotonic() - went_down:.1f}")
        time.sleep(max(0.0, 60 - (time.monotonic() - went_down)))
        assert replication(service)["status"] == "degraded"
        assert service.process.poll() is None
        bucket.up()
        came_back = time.monotonic()
        wait_for(service, "ok", 45)
        record_property("seconds until ok again", f"{time.monotonic() - came_back:.1f}")
        writer.stop()
        assert not writer.refused
        service.wait_for("the bucket has every change again")
        stop(service)
    shutil.rmtree(volume)

    run(project, volume, bucket, "restore", "--latest")
    written = [number for number, _ in writer.acknowledged]
    assert numbers(volume / "app.db") == written
    record_property("rows lost", f"0 of {len(written)}")


def fill(file: Path) -> None:
    """Take all the room there is."""
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={file}", "bs=4096"], capture_output=True, encoding="utf-8"
    )
    assert "No space left" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_bucket(project: Path, tmp_path: Path, record_property: Record) -> None:
    volume, small = tmp_path / "volume", tmp_path / "s3"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        with serving("rclone", small / "served") as bucket:
            variables = {**bucket.variables, "LITESTREAM_MAX_AGE": "5"}
            with Service(project, volume, **variables).wait_until_healthy() as service:
                writer = Writer(service, pause=0.02)
                filler = small / "served" / "filler"
                fill(filler)
                record_property(
                    "seconds until degraded", f"{wait_for(service, 'degraded', 30):.1f}"
                )
                assert service.process.poll() is None
                filler.unlink()
                subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
                record_property("seconds until ok again", f"{wait_for(service, 'ok', 45):.1f}")
                writer.stop()
                assert not writer.refused
                stop(service)
            shutil.rmtree(volume)
            run(project, volume, bucket, "restore", "--latest")
            written = [number for number, _ in writer.acknowledged]
            assert numbers(volume / "app.db") == written
            record_property("rows lost", f"0 of {len(written)}")
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_litestream_is_killed(project: Path, tmp_path: Path, bucket: Bucket) -> None:
    """Outside of a container the server outlives it, and says that nothing is copied."""
    volume = tmp_path / "volume"
    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        wait_for(service, "ok", 10)
        service.process.kill()
        service.process.wait()
        answer = service.client.get("/health").json()["checks"]["replication"]
        assert answer["status"] == "degraded"
        assert answer["message"] == "Litestream does not answer"


def test_nobody_reads_the_log_of_litestream(
    project: Path, tmp_path: Path, bucket: Bucket, record_property: Record
) -> None:
    """Neither the copy nor a stop waits for who does not read."""
    volume = tmp_path / "volume"
    reader, output = os.pipe()
    os.set_blocking(output, False)
    with suppress(BlockingIOError):
        while True:
            os.write(output, bytes(4096))
    os.set_blocking(output, True)
    with Service(
        project, volume, output=output, **bucket.variables
    ).wait_until_healthy() as service:
        os.close(output)
        add(service, 1)
        wait_for(service, "ok", 10)
        started = time.monotonic()
        service.terminate()
        assert service.ended() == 0
        record_property("seconds until it stopped", f"{time.monotonic() - started:.1f}")
    os.close(reader)
    shutil.rmtree(volume)
    run(project, volume, bucket, "restore", "--latest")
    assert numbers(volume / "app.db") == [1]


def test_the_server_is_killed_under_litestream(
    project: Path, tmp_path: Path, bucket: Bucket
) -> None:
    """The container ends with an error, so the platform starts it again; the copy is whole."""
    volume = tmp_path / "volume"
    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        add(service, 1)
        children = subprocess.run(
            ["pgrep", "-P", str(service.process.pid)], capture_output=True, encoding="utf-8"
        )
        os.kill(int(children.stdout), signal.SIGKILL)
        assert service.ended() != 0
    shutil.rmtree(volume)
    run(project, volume, bucket, "restore", "--latest")
    assert numbers(volume / "app.db") == [1]


@pytest.mark.parametrize("content", [b"", b"no database" * 1000], ids=["empty", "corrupt"])
def test_a_file_that_is_no_database(
    project: Path, tmp_path: Path, bucket: Bucket, content: bytes
) -> None:
    """An empty one is fetched anew; a damaged one is left for a person to look at."""
    volume = tmp_path / "volume"
    with Service(project, volume, **bucket.variables).wait_until_healthy() as service:
        add(service, 1)
        stop(service)
    for part in volume.glob("app.db*"):
        part.unlink()
    (volume / "app.db").write_bytes(content)

    with Service(project, volume, **bucket.variables) as service:
        if content:
            assert service.ended() == 1
            assert "cannot be used" in service.output()
            assert "Traceback" not in service.output()
            assert (volume / "app.db").read_bytes() == content
            run(project, volume, bucket, "restore", "--latest")
        else:
            service.wait_until_healthy()
    assert numbers(volume / "app.db") == [1]


def test_check_writes_to_the_bucket(project: Path, tmp_path: Path, each_bucket: Bucket) -> None:
    volume = tmp_path / "volume"
    with Service(project, volume, **each_bucket.variables).wait_until_healthy() as service:
        add(service, 1)
        for _ in range(2):
            found = run(project, volume, each_bucket, "check")
        assert "has taken a write" in found
        assert "the newest change in" in found
        assert SECRET not in found
        found = run(project, volume, each_bucket, "status")
        assert "replication    ok" in found
        stop(service)
    wrong = {**each_bucket.variables, "LITESTREAM_SECRET_ACCESS_KEY": "wrong"}
    with Service(project, volume, [*FORMS["exec"], "check"], **wrong) as command:
        assert command.ended() == 1
        assert "refused a write: SignatureDoesNotMatch" in command.output()
