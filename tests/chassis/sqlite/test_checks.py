"""`check` of this engine: the file, its volume and its schema."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from app.chassis import assembly, check, migrate, revisions
from app.chassis.checks.finding import Finding
from app.chassis.cli import main
from app.chassis.errors import StartupError
from app.chassis.sqlite import check as probes
from app.chassis.sqlite import volume
from app.chassis.sqlite.driver import open_database
from app.chassis.sqlite.volume import locked
from app.settings import Settings

from ..production import RAILWAY, REQUIRED
from ..test_checks import by_id, production
from .databases import make_database


def check_here(settings: Settings) -> Iterable[Finding]:
    return probes.check(settings, assembly.metadata())


def test_a_fresh_service_has_nothing_wrong(settings: Settings) -> None:
    make_database(settings)

    found = by_id(check_here(settings))

    # an old SQLite, and models that were made before the names of today, are only warned of
    warned = {name for name, finding in found.items() if finding.status not in {"ok", "skipped"}}
    assert warned <= {"sqlite.version", "models.names"}
    for name in ("database.path", "volume.writable", "volume.space", "sqlite.pragmas", "clock"):
        assert found[name].status == "ok", found[name]
    assert found["database.schema"].status == "ok"
    assert found["database.lock"].verdict.startswith("free")
    with locked(settings.database_path):
        assert probes.lock(settings.database_path).verdict.startswith("held")


def test_the_command_fails_when_a_check_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    (tmp_path / "app.db").write_bytes(b"no database" * 1000)

    assert main(["check", "--json"]) == 1

    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "failed"
    failed = {entry["id"] for entry in answer["findings"] if entry["status"] == "failed"}
    assert "database.file" in failed
    assert (tmp_path / "app.db").read_bytes() == b"no database" * 1000


def test_variables_from_elsewhere_are_checked_as_a_deployment_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "http://of-this-machine.example.com")
    # the bucket's own check has a test of its own, and would wait for a server here
    monkeypatch.setattr("app.chassis.assembly.check_backup", lambda _: [])
    before = dict(os.environ)

    found = by_id(check.run({**RAILWAY, **REQUIRED, "DATABASE_URL": "sqlite:///data/app.db"}))
    assert found["settings.DATABASE_URL"].status == "failed"

    changed = {"RAILWAY_DEPLOYMENT_DRAINING_SECONDS": "5"}
    found = by_id(check.run({**RAILWAY, **REQUIRED, **changed}))
    assert found["settings"].status == "ok"
    assert found["network.cors"].verdict == "no web page of another origin may call"
    assert found["database.path"].verdict == "/data/app.db is on the volume"
    assert found["volume"].status == "skipped"
    assert found["deploy.draining"].status == "warning"
    assert dict(os.environ) == before


def test_two_newest_revisions_are_said_and_refused(
    settings: Settings, add_revision: Callable[[str], str]
) -> None:
    make_database(settings)
    add_revision('revision = "a"\ndown_revision = "{head}"\n')
    assert revisions.check_order().status == "ok"
    first = revisions.VERSIONS / "added.py"
    other = first.read_text(encoding="utf-8").replace('"a"', '"b"')
    (revisions.VERSIONS / "other.py").write_text(other, encoding="utf-8")

    found = by_id(check_here(settings))

    assert found["database.revisions"].status == "failed"
    assert "a, b are all the newest" in found["database.revisions"].verdict
    assert found["database.schema"].status == "skipped"
    with pytest.raises(StartupError, match="uv run alembic merge heads"):
        migrate.upgrade(settings.database_path)
    first.unlink()
    (revisions.VERSIONS / "other.py").write_text('revision = "b"\ndown_revision = "gone"\n')
    assert "gone is missing, and another one follows it" in revisions.check_order().verdict


MOUNTS = """\
22 1 0:21 / / rw,relatime - overlay overlay rw
23 22 8:1 / /data rw,relatime shared:1 - ext4 /dev/sda1 rw
24 23 0:40 / /data/inside rw - tmpfs tmpfs rw
25 22 0:41 / /bound\\040here rw master:2 - nfs4 server:/x rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "point"),
    [
        ("/data", "ext4", "/data"),
        ("/data/below", "ext4", "/data"),
        ("/data/inside/x", "tmpfs", "/data/inside"),
        ("/database", "overlay", "/"),
        ("/bound here/x", "nfs4", "/bound here"),
    ],
)
def test_the_mount_of_a_path(tmp_path: Path, path: str, kind: str, point: str) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTS, encoding="utf-8")

    assert probes.mount_of(Path(path), volume.mounts(file)) == (point, kind)


def test_the_file_system_must_keep_what_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTS, encoding="utf-8")
    known = volume.mounts(file)
    monkeypatch.setattr(volume, "mounts", lambda: known)

    def at(path: str, volume: str) -> str:
        changed = production(database_url=f"sqlite:///{path}/app.db", volume_path=volume)
        return by_id([probes.file_system(changed)])["volume.file-system"].status

    assert at("/data", "/data") == "ok"
    assert at("/srv", "/srv") == "failed"
    assert at("/data/inside", "/data") == "failed"
    assert at("/bound here", "/bound here") == "warning"


def test_a_volume_that_is_not_mounted_or_left_aside(tmp_path: Path) -> None:
    beside = production(volume_path=str(tmp_path), database_url="sqlite:////srv/app.db")

    assert by_id([probes.mounted(beside)])["volume.mounted"].status == "failed"
    assert by_id([probes.database_path(beside)])["database.path"].status == "warning"
    assert by_id([probes.mounted(production(volume_path="/proc"))])["volume.mounted"].status == (
        "ok" if volume.mounts() else "skipped"
    )


def test_little_room_is_a_warning_and_none_a_failure(settings: Settings) -> None:
    for name, status in (("min_free_bytes", "failed"), ("low_free_bytes", "warning")):
        changed = settings.model_copy(update={name: 2**62})
        assert by_id([probes.space(changed)])["volume.space"].status == status


def test_a_file_of_the_future_is_a_clock_that_went_back(tmp_path: Path) -> None:
    late = tmp_path / "late"
    late.touch()
    os.utime(late, (2**32, 2**32))

    assert by_id([probes.clock(tmp_path)])["clock"].status == "warning"


def statement(sql: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        connection = open_database(path)
        connection.execute(sql)
        connection.close()

    return change


def damage(path: Path) -> None:
    connection = open_database(path)
    connection.executescript(
        "CREATE TABLE filler (text TEXT);"
        "INSERT INTO filler SELECT hex(randomblob(500)) FROM"
        " (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)"
        " SELECT i FROM n); PRAGMA wal_checkpoint(TRUNCATE)"
    )
    connection.close()
    with path.open("r+b") as file:
        file.seek(-4096 * 3, os.SEEK_END)
        file.write(b"\xff" * 4096)


@pytest.mark.parametrize(
    ("spoil", "name", "status"),
    [
        (lambda path: os.truncate(path, 0), "database.file", "failed"),
        (statement("PRAGMA journal_mode=DELETE"), "sqlite.pragmas", "failed"),
        (
            statement("UPDATE alembic_version SET version_num = 'newer'"),
            "database.schema",
            "warning",
        ),
        (damage, "database.integrity", "failed"),
    ],
    ids=["empty", "pragmas", "ahead", "damaged"],
)
def test_a_database_that_is_not_right(
    settings: Settings, spoil: Callable[[Path], None], name: str, status: str
) -> None:
    make_database(settings)
    spoil(settings.database_path)

    assert by_id(check_here(settings))[name].status == status


def test_a_database_that_is_behind(settings: Settings, add_revision: Callable[[str], str]) -> None:
    make_database(settings)
    add_revision('revision = "added"\ndown_revision = "{head}"\n')

    assert by_id(check_here(settings))["database.schema"].status == "warning"


def test_tables_without_a_revision(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    make_database(settings)
    statement("DELETE FROM alembic_version")(settings.database_path)
    statement("CREATE TABLE before_a (id INTEGER)")(settings.database_path)
    monkeypatch.setattr(revisions, "accepts_tables", lambda _: False)

    found = by_id(check_here(settings))["database.schema"]

    assert found.status == "failed"
    assert "before_a" in found.verdict
    assert "alembic -x existing revision" in found.advice


def test_an_old_sqlite_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "FIXED_SQLITE", (99, 0, 0))

    assert by_id([probes.version()])["sqlite.version"].status == "warning"
