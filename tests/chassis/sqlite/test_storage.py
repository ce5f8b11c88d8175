"""Mounts, permissions and the lock."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT
from app.chassis.sqlite import check as probes
from app.chassis.sqlite import volume
from app.chassis.sqlite.driver import open_database
from app.settings import Settings

from .databases import migrated

HOLD = """
import sys, time
from pathlib import Path
from app.chassis.sqlite.volume import acquire_lock
acquire_lock(Path(sys.argv[1]), 0)
print("held", flush=True)
sys.stdin.read()
"""


def mounts(tmp_path: Path, *paths: str) -> Path:
    file = tmp_path / "mountinfo"
    lines = [f"36 35 98:0 / {path} rw,noatime master:1 - ext4 /dev/sda1 rw" for path in paths]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_a_volume_has_to_be_mounted(tmp_path: Path) -> None:
    listed = mounts(tmp_path, "/", "/data", "/my\\040volume")

    volume.require_mount(Path("/data"), listed)
    volume.require_mount(Path("/my volume"), listed)
    with pytest.raises(StartupError, match="no volume is mounted at /dat,"):
        volume.require_mount(Path("/dat"), listed)
    with pytest.raises(StartupError, match="no volume"):
        volume.require_mount(Path("/data/below"), listed)


def test_no_list_of_mounts_is_no_reason_to_refuse(tmp_path: Path) -> None:
    volume.require_mount(Path("/data"), tmp_path / "missing")


def test_the_directory_is_made(settings: Settings, tmp_path: Path) -> None:
    deep = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/a/b/app.db"})

    volume.prepare(deep)

    assert (tmp_path / "a" / "b").is_dir()


def test_a_directory_that_cannot_be_made_is_one_clear_line(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    blocked = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/file/app.db"})

    with pytest.raises(StartupError, match="cannot create") as caught:
        volume.prepare(blocked)
    assert "\n" not in str(caught.value)


def test_a_directory_in_the_databases_place_is_one_clear_line(
    settings: Settings, tmp_path: Path
) -> None:
    taken = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/"})

    with pytest.raises(StartupError, match=r"names the directory .*; add the name"):
        volume.prepare(taken)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(StartupError, match="RAILWAY_RUN_UID=0"):
        volume.require_writable(tmp_path)


def test_a_log_without_its_database_is_kept(settings: Settings) -> None:
    log = settings.database_path.with_name("app.db-wal")
    log.touch()
    volume.prepare(settings)

    log.write_bytes(b"the last changes")
    with pytest.raises(StartupError, match="is missing, and"):
        volume.prepare(settings)
    settings.database_path.touch()
    with pytest.raises(StartupError, match="is empty, and"):
        volume.prepare(settings)
    assert log.read_bytes() == b"the last changes"

    settings.database_path.write_bytes(b"something")
    volume.prepare(settings)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["app", "app/api", "app/main.py"])
def test_code_that_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "app" / "api").mkdir(parents=True)
    (tmp_path / "app" / "main.py").touch()
    volume.require_readable(tmp_path / "app")

    (tmp_path / name).chmod(0o200)
    try:
        with pytest.raises(StartupError, match="chmod -R a\\+rX"):
            volume.require_readable(tmp_path / "app")
    finally:
        (tmp_path / name).chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_hands_the_volume_over(tmp_path: Path) -> None:
    for name in ("app.db", "app.db-wal", "below/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("/etc/passwd")
    before = os.stat("/etc/passwd").st_uid

    volume.give_to(tmp_path, 10001)

    assert {path.lstat().st_uid for path in (tmp_path, *tmp_path.rglob("*"))} == {10001}
    assert os.stat("/etc/passwd").st_uid == before


def test_the_lock_is_never_written_through_a_link(settings: Settings, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    volume.beside(settings.database_path, ".lock").symlink_to(precious)
    with pytest.raises(StartupError, match="is a symbolic link"):
        volume.acquire_lock(settings.database_path, 0)
    assert volume.holder(settings.database_path) is None
    assert precious.read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_makes_no_directory_through_a_link_on_the_volume(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    mount.mkdir()
    elsewhere.mkdir(mode=0o700)
    (mount / "data").symlink_to(elsewhere)
    placed = settings.model_copy(
        update={
            "volume_path": str(mount),
            "database_url": f"sqlite:///{mount}/data/below/app.db",
            "app_uid": 10001,
        }
    )

    def drop(_: int) -> None:
        assert not list(elsewhere.iterdir())
        raise StartupError("as far as root goes")

    monkeypatch.setattr(volume, "drop_to", drop)
    with pytest.raises(StartupError, match="as far as root goes"):
        volume.prepare(placed)
    assert elsewhere.stat().st_uid == 0


def test_a_database_whose_name_ended_in_white_space_is_taken_over(settings: Settings) -> None:
    database = settings.database_path
    stray = database.with_name("app.db \n")
    stray.write_bytes(migrated())
    connection = open_database(stray)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE kept (id INTEGER)")
    shutil.copy(f"{stray}-wal", f"{database}.log")
    connection.close()
    os.rename(f"{database}.log", f"{stray}-wal")  # as a kill leaves it

    os.close(volume.acquire_lock(database, 0))

    assert not list(database.parent.glob("app.db \n*"))
    connection = open_database(database)
    assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    connection.close()


def test_a_database_of_the_right_name_is_never_replaced(settings: Settings) -> None:
    database = settings.database_path
    stray = database.with_name("app.db\n")
    database.write_text("right", encoding="utf-8")
    stray.write_text("beside", encoding="utf-8")

    os.close(volume.acquire_lock(database, 0))

    assert database.read_text(encoding="utf-8") == "right"
    assert stray.read_text(encoding="utf-8") == "beside"
    finding = probes.database_path(settings)
    assert finding.status == "warning"
    assert "'app.db\\n'" in finding.verdict.replace(f"{database.parent}/", "")


def test_the_lock_waits_for_its_holder_and_then_gives_up(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(database)],
        cwd=PROJECT_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StartupError, match=f"process {holder.pid}"):
            volume.acquire_lock(database, timeout=0.3)
        holder.kill()

    # the kernel lets go of a killed holder's lock
    descriptor = volume.acquire_lock(database, timeout=10)
    assert os.get_inheritable(descriptor)
    os.close(descriptor)
