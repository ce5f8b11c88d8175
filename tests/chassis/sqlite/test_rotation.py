"""When the service copies its database, what stops it, and what it says then."""

import os
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from app.chassis.application import create_application
from app.chassis.errors import ConfigurationError
from app.chassis.sqlite import backup, rotation
from app.chassis.sqlite.rotation import LATE, Rotation
from app.settings import Settings

from .databases import make_database


@pytest.fixture
def watch(settings: Settings) -> Rotation:
    make_database(settings)
    return Rotation(settings)


def names(watch: Rotation) -> list[str]:
    return sorted(path.name for path in watch.directory.glob("*"))


def put(watch: Rotation, made: datetime) -> str:
    """A copy by name only, as if made at that time."""
    watch.directory.mkdir(exist_ok=True)
    name = f"app-{made:%Y%m%dT%H%M%SZ}.db"
    (watch.directory / name).touch()
    return name


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-03-29T03:00:00+00:00", "2026-03-29T03:00:00+00:00"),
        ("2026-03-29T02:59:59+00:00", "2026-03-28T03:00:00+00:00"),
        ("2026-03-01T00:00:00+00:00", "2026-02-28T03:00:00+00:00"),
    ],
)
def test_it_is_due_once_a_day(settings: Settings, now: str, due: str) -> None:
    assert settings.last_due(datetime.fromisoformat(now)) == datetime.fromisoformat(due)


@pytest.mark.parametrize("value", ["3:00", "24:00", "03:60", "03:00Z", "03", "hunter2"])
def test_a_time_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BACKUP_TIME", value)
    with pytest.raises(ConfigurationError, match="BACKUP_TIME: must be a time of day in UTC"):
        Settings.load()


def test_a_start_makes_up_for_a_copy_and_the_next_one_does_not(watch: Rotation) -> None:
    now = datetime.now(UTC)
    put(watch, watch.settings.last_due(now) - timedelta(seconds=1))
    watch.look()
    made = names(watch)
    assert len(made) == 2

    watch.look()
    Rotation(watch.settings).look()
    assert names(watch) == made


def test_the_oldest_go_and_a_lower_number_makes_room_first(
    watch: Rotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    old = [put(watch, now - timedelta(days=days)) for days in range(12, 1, -1)]
    monkeypatch.setattr(backup, "require_room", lambda *_: counted.append(len(names(watch))))
    counted: list[int] = []

    watch.look()

    assert counted == [7]
    assert len(names(watch)) == 7
    assert names(watch)[:6] == old[-6:]


def test_only_one_worker_makes_copies_until_it_ends(watch: Rotation) -> None:
    other = Rotation(watch.settings)
    watch.look()
    (made,) = names(watch)
    os.remove(watch.directory / made)

    other.look()
    assert names(watch) == []

    assert watch.turn is not None
    os.close(watch.turn)  # as the kernel does when it is killed
    other.look()
    assert len(names(watch)) == 1


def test_what_a_kill_has_left_does_not_take_the_room(watch: Rotation) -> None:
    watch.directory.mkdir()
    with backup.workspace(watch.directory) as at_work:
        left = watch.directory / ".backup-left"
        left.mkdir()
        (left / "copy.db").touch()
        for directory in (left, at_work):
            os.utime(directory, (time.time() - 60,) * 2)

        watch.look()

        assert not left.exists()
        assert at_work.exists()


def test_a_copy_that_does_not_fit_is_refused_and_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_database(settings)
    # degraded below 64 MB, and so a copy leaves those free
    crowded = settings.model_copy(update={"low_free_bytes": 2**62})
    watch = Rotation(crowded)
    monkeypatch.setattr(rotation, "FIRST_LOOK", 0.0)
    thread = threading.Thread(target=watch.watch)

    thread.start()
    while not watch.retry_at:
        time.sleep(0.01)
    watch.ended.set()
    thread.join()

    assert watch.retry_at > time.monotonic()
    assert names(watch) == []
    (finding,) = rotation.check(crowded)
    assert finding.status == "warning"
    assert "does not fit" in finding.verdict
    with TestClient(create_application(crowded)) as client:
        shown = client.get("/health").json()["checks"]["copies"]
    assert shown["status"] == "degraded"
    assert shown["message"] == "there is no room for a copy of the database"


def test_the_age_is_shown_and_an_old_one_is_said(watch: Rotation, settings: Settings) -> None:
    (finding,) = rotation.check(watch.settings)
    assert finding.status == "skipped"
    put(watch, datetime.now(UTC) - LATE - timedelta(minutes=1))
    (finding,) = rotation.check(watch.settings)
    assert finding.status == "warning"

    with TestClient(create_application(settings)) as client:
        old = client.get("/health").json()["checks"]["copies"]
        assert old["message"] == "the newest copy of the database is too old"
        watch.look()
        new = client.get("/health").json()["checks"]["copies"]
    assert new["status"] == "ok"
    assert new["details"]["age_seconds"] < 60
    (finding,) = rotation.check(watch.settings)
    assert finding.status == "ok"


def test_a_clock_that_ran_ahead_does_not_stop_it(watch: Rotation) -> None:
    ahead = put(watch, datetime.now(UTC) + timedelta(days=400))
    one = Rotation(watch.settings.model_copy(update={"backup_keep": 1}))

    one.look()

    assert len(names(watch)) == 2
    assert ahead in names(watch)
    assert not one.is_due(datetime.now(UTC))
