"""`check`: every pitfall has an id, a verdict and advice, and no secret gets out."""

import json
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

from app.chassis import answers, check
from app.chassis.checks import deployment
from app.chassis.checks.finding import Finding
from app.chassis.database import Reader, Writer
from app.chassis.errors import StartupError
from app.chassis.routing import DatabaseRoute
from app.chassis.settings import PROJECT_ROOT
from app.settings import Settings

from .production import RAILWAY

SECRET = "hunter2-hunter2"
GIT = shutil.which("git")


def by_id(findings: Iterable[Finding]) -> dict[str, Finding]:
    found = {finding.id: finding for finding in findings}
    for finding in found.values():
        assert "\n" not in finding.verdict + finding.advice
        assert finding.verdict
        assert bool(finding.advice) == (finding.status in {"warning", "failed"}), finding
    return found


def production(**changes: object) -> Settings:
    """Settings in production; what would be refused there is set past the rules."""
    return Settings.load().model_copy(update={"environment": "production", **changes})


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

    found = by_id(check.routes(settings))["http.open-routes"]
    assert found.status == "ok"
    found = by_id(check.routes(production()))["http.open-routes"]
    assert found.status == "warning"
    assert found.verdict.endswith("POST /0, POST /1, POST /2, POST /3, POST /4 and 2 more")
    monkeypatch.setattr("app.main.create_app", None)
    found = by_id(check.routes(production()))["http.open-routes"]
    assert found.status == "skipped"
    assert capsys.readouterr().out == ""
