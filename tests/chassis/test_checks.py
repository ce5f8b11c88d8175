"""`check`: every pitfall has an id, a verdict and advice, and no secret gets out."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, Request
from fastapi.security import HTTPBearer
from pydantic_settings import DotEnvSettingsSource

from app.chassis import answers, assembly, check, migrate, revisions
from app.chassis.checks import deployment
from app.chassis.checks.finding import Finding
from app.chassis.cli import main
from app.chassis.database import Reader, Writer
from app.chassis.errors import StartupError
from app.chassis.routing import DatabaseRoute
from app.chassis.settings import PROJECT_ROOT
from app.chassis.sqlite import check as probes
from app.chassis.sqlite import volume
from app.chassis.sqlite.driver import open_database
from app.chassis.sqlite.volume import locked
from app.settings import Settings

from .databases import make_database
from .production import RAILWAY, REQUIRED

SECRET = "hunter2-hunter2"
GIT = shutil.which("git")


def by_id(findings: Iterable[Finding]) -> dict[str, Finding]:
    found = {finding.id: finding for finding in findings}
    for finding in found.values():
        assert "\n" not in finding.verdict + finding.advice
        assert finding.verdict
        assert bool(finding.advice) == (finding.status in {"warning", "failed"}), finding
    return found


def check_here(settings: Settings) -> Iterable[Finding]:
    return probes.check(settings, assembly.metadata())


def production(**changes: object) -> Settings:
    """Settings in production; what would be refused there is set past the rules."""
    return Settings.load().model_copy(update={"environment": "production", **changes})


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


def test_every_wrong_setting_is_a_finding_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECRET_KEY": SECRET, "PORT": SECRET, "ENVIRONMENT": "production"}.items():
        monkeypatch.setenv(name, value)

    findings = check.run()

    found = by_id(findings)
    assert found["settings.SECRET_KEY"].status == "failed"
    assert "openssl rand -hex 32" in found["settings.SECRET_KEY"].advice
    assert found["settings.PORT"].status == "failed"
    assert check.is_failed(findings)
    assert SECRET not in check.as_text(findings) + check.as_json(findings)


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


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RAILWAY),
        json.dumps([{"name": name, "value": value} for name, value in RAILWAY.items()]),
        "# a comment\n\n"
        + "\n".join(f'export {name}="{value}"' for name, value in RAILWAY.items()),
        "\n".join(f"{name} = {value} # why" for name, value in RAILWAY.items()),
    ],
    ids=["object", "list", "quoted", "plain"],
)
def test_variables_come_in_several_forms(tmp_path: Path, text: str) -> None:
    file = tmp_path / "variables"
    file.write_text(text, encoding="utf-8")

    assert check.read_variables(str(file)) == RAILWAY


def test_an_env_file_is_read_as_the_service_reads_it(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    lines = [
        "\ufeffAPP_VERSION='a\nb'",
        "LOG_LEVEL=debug # why",
        "VOLUME_PATH=/${LOG_LEVEL}",
        "export PORT=80#0",
        "WORKERS",
        "DATABASE_URL='it\\'s'",
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    encoding = Settings.model_config["env_file_encoding"]
    source = DotEnvSettingsSource(Settings, env_file=file, env_file_encoding=encoding)

    found = check.read_variables(str(file))

    assert found == {name.upper(): text for name, text in source.env_vars.items() if text}
    assert found.keys() == {"APP_VERSION", "LOG_LEVEL", "VOLUME_PATH", "PORT", "DATABASE_URL"}


@pytest.mark.parametrize(
    "text", ["{", '{"A": {"b": 1}}', "[1]", f"A=1\n'{SECRET}", "", '{"A": "\\u0000"}']
)
def test_other_forms_are_one_clear_line_without_the_content(tmp_path: Path, text: str) -> None:
    file = tmp_path / "variables"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(StartupError, match=r"^Check: ") as caught:
        check.read_variables(str(file))

    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    with pytest.raises(StartupError, match=r"cannot be read"):
        check.read_variables(str(tmp_path / "missing"))


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


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"backend_url": ""}, "network.backend-url"),
        ({"backend_url": "http://api.example.com"}, "network.backend-url"),
        ({"allowed_hosts": ("*",)}, "network.hosts"),
        ({"cors_origins": ("http://app.example.com",)}, "network.cors"),
        ({"trusted_proxies": ("0.0.0.0/0",)}, "network.proxy"),
        ({"trusted_proxies": ("::/0",)}, "network.proxy"),
        ({"trusted_proxies": (), "railway_environment_id": "e1"}, "network.proxy"),
        ({"docs_enabled": True}, "network.docs"),
    ],
)
def test_settings_that_are_allowed_and_probably_not_meant(
    changes: Mapping[str, object], name: str
) -> None:
    meant = {
        "backend_url": "https://api.example.com",
        "allowed_hosts": ("api.example.com",),
        "cors_origins": ("https://app.example.com",),
        "trusted_proxies": ("10.0.0.0/8", "fd12::/48"),
        "docs_enabled": False,
    }
    assert by_id(check.check_settings(production(**meant), {}))[name].status == "ok"
    assert (
        by_id(check.check_settings(production(**{**meant, **changes}), {}))[name].status
        == "warning"
    )


def test_what_the_settings_warn_of_is_found(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ["MY_KEY: is odd; change it", "BACKEND_URL: has a check of its own; see there"]
    monkeypatch.setattr(Settings, "warnings", lambda _: told)

    found = by_id(check.check_settings(settings, {}))

    assert found["settings.MY_KEY"] == ("settings.MY_KEY", "warning", "is odd", "change it")
    assert "settings.BACKEND_URL" not in found


def test_features_take_memory_in_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WORKER_BYTES", 0)
    without = check.needed_bytes(3)
    monkeypatch.setattr(answers, "WORKER_BYTES", 5)

    assert check.needed_bytes(3) == without + 15


@pytest.mark.parametrize(
    ("workers", "share", "status"), [(1, 3.0, "ok"), (4, 0.9, "failed"), (4, 1.2, "warning")]
)
def test_workers_have_to_fit_into_the_memory(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    share: float,
    status: str,
) -> None:
    file = tmp_path / "memory.max"
    limit = int(share * check.needed_bytes(workers))
    file.write_text(f"{limit}\n", encoding="ascii")
    monkeypatch.setattr(check, "MEMORY_LIMITS", (file,))
    changed = settings.model_copy(update={"workers": workers})

    assert by_id([check.memory(changed)])["workers.memory"].status == status
    file.write_text("max\n", encoding="ascii")
    assert check.memory(changed).status == "skipped"


def test_every_start_command_is_the_same(tmp_path: Path) -> None:
    assert by_id([deployment.start_command()])["deploy.start-command"].status == "ok"

    (tmp_path / "Procfile").write_text("web: python -m app\n", encoding="utf-8")
    (tmp_path / "Dockerfile").write_text('CMD ["python", "-m", "app"]\n', encoding="utf-8")
    assert deployment.start_command(tmp_path).status == "ok"
    (tmp_path / "railway.json").write_text('{"startCommand": "uvicorn app"}', encoding="utf-8")
    assert by_id([deployment.start_command(tmp_path)])["deploy.start-command"].status == "failed"


def test_railway_json_is_a_warning_from_december_unless_something_reads_it(tmp_path: Path) -> None:
    november, december = date(2026, 11, 30), date(2026, 12, 1)
    file, program = tmp_path / "railway.json", tmp_path / ".railway" / "railway.py"
    program.parent.mkdir()
    program.write_text("# the values of railway.json", encoding="utf-8")
    assert deployment.railway_json(december, tmp_path).status == "ok"
    file.touch()
    assert deployment.railway_json(december, tmp_path).status == "skipped"
    (tmp_path / ".git").mkdir()
    assert deployment.railway_json(november, tmp_path).status == "ok"
    assert deployment.railway_json(december, tmp_path).status == "warning"

    program.write_text('FILE = ROOT / "railway.json"', encoding="utf-8")
    assert deployment.railway_json(december, tmp_path).status == "ok"
    file.unlink()
    assert deployment.railway_json(november, tmp_path).status == "failed"


def test_the_lock_has_to_be_there_and_in_step(tmp_path: Path) -> None:
    assert by_id([deployment.lock_file(tmp_path)])["deploy.uv-lock"].status == "failed"

    if deployment.lock_file().status == "skipped":
        pytest.skip("there is no uv here to compare with, or no registry")
    for name in ("pyproject.toml", "uv.lock"):
        (tmp_path / name).write_bytes((PROJECT_ROOT / name).read_bytes())
    assert deployment.lock_file(tmp_path).status == "ok"
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        project.replace('"sqlalchemy>=2.1,', '"sqlalchemy>=2.0,'), encoding="utf-8"
    )
    assert by_id([deployment.lock_file(tmp_path)])["deploy.uv-lock"].status == "failed"


@pytest.mark.skipif(GIT is None, reason="needs git")
def test_a_conflict_that_is_left_is_found(tmp_path: Path) -> None:
    (tmp_path / "railway.json").write_text("{}\n")
    assert deployment.unsettled(tmp_path).status == "ok"

    # in parts, as this file is one that is looked into
    marked = f"{'<' * 7} before updating\na\n{'=' * 7}\nb\n{'>' * 7} after updating"
    (tmp_path / "railway.json").write_text(f"{marked}\n")
    (tmp_path / "Dockerfile").write_text(f"FROM x\n{marked}\n")
    (tmp_path / ".github" / "workflows").mkdir(parents=True)
    (tmp_path / ".github" / "workflows" / "ci.yml.rej").write_text("x\n")
    found = deployment.unsettled(tmp_path)
    assert found.status == "failed"
    assert "in .github/workflows/ci.yml.rej, Dockerfile, railway.json" in found.verdict


def test_a_committed_env_file_is_found(tmp_path: Path) -> None:
    assert GIT is not None
    assert deployment.env_file(tmp_path).status == "skipped"
    subprocess.run([GIT, "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".env").touch()
    assert deployment.env_file(tmp_path).status == "ok"
    subprocess.run([GIT, "-C", str(tmp_path), "add", "--force", ".env"], check=True)
    assert by_id([deployment.env_file(tmp_path)])["deploy.env-file"].status == "failed"


@pytest.mark.skipif(GIT is None, reason="needs git")
def test_a_committed_env_file_is_found_in_a_larger_repository(tmp_path: Path) -> None:
    assert GIT is not None
    service = tmp_path / "services" / "billing"
    service.mkdir(parents=True)
    subprocess.run([GIT, "init", "--quiet", str(tmp_path)], check=True)
    for name in (".env.example", ".env.production"):
        (service / name).touch()
        assert deployment.env_file(service).status == "ok"
        subprocess.run([GIT, "-C", str(service), "add", "--force", name], check=True)
    found = deployment.env_file(service)
    assert found.status == "failed"
    assert found.verdict.startswith(".env.production is committed")


def open_routes(router: APIRouter) -> list[str]:
    """What the check says of routes that are included in the application, one of them below."""
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.mount("/below", router)
    return sorted(check.open_routes(app.routes))


def test_a_route_that_writes_for_everybody_is_found() -> None:
    router = APIRouter(route_class=DatabaseRoute)

    @router.post("/plain")
    async def plain() -> None: ...

    @router.get("/reads")
    def reads(session: Reader) -> None: ...

    @router.get("/writes")
    def writes(session: Writer) -> None: ...

    assert open_routes(router) == [
        "GET /below/writes",
        "GET /v1/writes",
        "POST /below/plain",
        "POST /v1/plain",
    ]


async def by_header(authorization: Annotated[str, Header()]) -> None: ...


async def by_cookie(key: Annotated[str, Cookie()]) -> None: ...


async def by_request(request: Request) -> None: ...


def through(_: Annotated[None, Depends(by_header)]) -> None: ...


@pytest.mark.parametrize("guard", [HTTPBearer(), by_header, by_cookie, by_request, through])
def test_a_route_that_asks_who_it_is_is_not_open(guard: Callable[..., object]) -> None:
    router = APIRouter(route_class=DatabaseRoute, dependencies=[Depends(guard)])

    @router.post("/things")
    def create(session: Writer) -> None: ...

    assert open_routes(router) == []


def test_a_dependency_that_asks_for_something_else_is_no_guard() -> None:
    router = APIRouter(dependencies=[Depends(lambda limit=1: limit)])

    @router.post("/things")
    async def create() -> None: ...

    assert open_routes(router) == ["POST /below/things", "POST /v1/things"]


def test_open_routes_are_a_warning_in_production_only(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = FastAPI()
    for number in range(7):
        app.add_api_route(f"/{number}", lambda: None, methods=["POST"])

    def create_app(_: Settings) -> FastAPI:
        print("not for the check's reader")
        return app

    monkeypatch.setattr("app.main.create_app", create_app)

    (found,) = by_id([check.routes(settings)]).values()
    assert found.status == "ok"
    (found,) = by_id([check.routes(production())]).values()
    assert found.status == "warning"
    assert found.verdict.endswith("POST /0, POST /1, POST /2, POST /3, POST /4 and 2 more")
    monkeypatch.setattr("app.main.create_app", None)
    (found,) = by_id([check.routes(production())]).values()
    assert found.status == "skipped"
    assert capsys.readouterr().out == ""
