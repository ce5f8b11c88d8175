"""What `check` finds out about the server, and about code that came from SQLite."""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi import APIRouter, FastAPI

from app.chassis import answers, assembly, check, migrate
from app.chassis.checks.finding import Finding
from app.chassis.database import Reader, Writer
from app.chassis.postgresql import check as of_server
from app.chassis.postgresql.settings import SERVER_CONNECTIONS
from app.chassis.routing import Router
from app.settings import Settings

from ..production import REQUIRED


def probes(settings: Settings) -> dict[str, Finding]:
    found = list(assembly.engine.probes(settings, assembly.metadata()))
    by_id = {finding.id: finding for finding in found}
    assert len(by_id) == len(found)
    return by_id


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_server_that_is_well(settings: Settings) -> None:
    migrate.upgrade(settings)
    found = probes(settings)
    wrong = {name: one for name, one in found.items() if one.status != "ok"}
    assert set(wrong) <= {"code.tests", "code.streams"}
    assert {
        "database.address",
        "database.connections",
        "database.revisions",
        "database.rules",
        "database.schema",
        "database.sequences",
        "models.names",
        "server.connections",
        "server.version",
        "server.writable",
    } <= found.keys()


def test_a_server_that_cannot_be_reached(url: str) -> None:
    away = Settings.load(database_url="postgresql://app:hunter2@127.0.0.1:1/app")
    found = probes(away)["server"]
    assert found.status == "failed"
    assert found.verdict == "app at 127.0.0.1:1 cannot be used: Connection refused"
    assert "hunter2" not in str(probes(away))


def test_variables_are_checked_without_a_server() -> None:
    url = "postgres://user:hunter2@postgres.railway.internal/railway"
    address = "https://api.example.com"
    findings = check.run({**REQUIRED, "BACKEND_URL": address, "DATABASE_URL": url})
    found = {finding.id: finding for finding in findings}
    failed = {one.id for one in findings if one.status == "failed"}
    assert failed <= {"settings.ANTHROPIC_FOR_EVERYONE"}, check.as_text(findings)
    assert found["server"].status == "skipped"
    assert found["database.address"].verdict == "railway at postgres.railway.internal:5432"
    assert "hunter2" not in check.as_text(findings) + check.as_json(findings)


def test_a_schema_that_is_behind_is_a_warning(settings: Settings) -> None:
    assert probes(settings)["database.schema"].status == "warning"


def test_too_many_connections_are_refused(url: str) -> None:
    many = Settings.load(database_url=url, workers=16, database_connections=16)
    found = probes(many)
    needed = 2 * answers.REPLICAS * 16 * many.of_process
    for name in ("database.connections", "server.connections"):
        assert found[name].status == "failed"
        assert f"take {needed} during a deploy" in found[name].verdict
    computed = Settings.load(database_url=url, workers=2)
    assert probes(computed)["database.connections"].status == "ok"
    assert f"of {SERVER_CONNECTIONS} " in found["database.connections"].verdict


def test_a_public_address_on_railway_is_a_warning() -> None:
    public = Settings.load(
        **{name.lower(): value for name, value in REQUIRED.items() if name != "DATABASE_URL"},
        railway_environment_id="e1",
        backend_url="https://api.example.com",
        database_url="postgresql://u:p@roundhouse.proxy.rlwy.net:1234/railway",
    )
    assert of_server.address(public).status == "warning"


def test_sequences_behind_their_table(settings: Settings, url: str) -> None:
    migrate.upgrade(settings)
    run(
        url,
        'CREATE TABLE "Odd name" (id serial PRIMARY KEY)',
        "CREATE TABLE fine (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
        "INSERT INTO fine DEFAULT VALUES",
        'INSERT INTO "Odd name" VALUES (1)',
    )
    found = probes(settings)["database.sequences"]
    assert found.status == "failed"
    assert "fine" not in found.verdict
    run(url, found.advice)
    assert probes(settings)["database.sequences"].status == "ok"
    run(url, 'INSERT INTO "Odd name" DEFAULT VALUES')


def test_rules_that_are_not_in_force(settings: Settings, url: str) -> None:
    migrate.upgrade(settings)
    run(
        url,
        "CREATE TABLE loose (id int)",
        "ALTER TABLE loose ADD CONSTRAINT positive CHECK (id > 0) NOT VALID",
    )
    found = probes(settings)["database.rules"]
    assert found.status == "warning"
    assert "constraint positive of loose" in found.verdict


def test_a_read_only_database(settings: Settings, url: str) -> None:
    migrate.upgrade(settings)
    run(url, f"ALTER DATABASE {settings.url.database} SET default_transaction_read_only = on")
    assert probes(settings)["server.writable"].status == "failed"


def test_an_old_server_and_a_wrong_clock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(settings)
    monkeypatch.setattr(of_server, "OLDEST", 99)
    monkeypatch.setattr(of_server, "CLOCK_TOLERANCE", -1)
    found = probes(settings)
    assert found["server.version"].status == "failed"
    assert found["clock"].status == "warning"


STREAM = "async def stream(last: LastEventId):\n    select(Note).where(Note.id > last)\n"


@pytest.mark.parametrize(
    ("file", "text", "status"),
    [
        ("app/api/stream.py", STREAM, "warning"),
        ("app/api/stream.py", f"{STREAM}    database.settled(Note.id)\n", "ok"),
        ("app/api/list.py", "select(Note).where(Note.id > 3)", "ok"),
        ("app/chassis/stream.py", STREAM, "ok"),
    ],
)
def test_streams_that_trust_growing_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, status: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.setattr(of_server, "PROJECT_ROOT", tmp_path)
    found = of_server.streams()
    assert found.status == status
    assert status == "ok" or file in found.verdict


@pytest.mark.parametrize(
    ("file", "text", "status"),
    [
        ("tests/conftest.py", 'f"sqlite:///{tmp_path}/app.db"', "warning"),
        ("tests/unit/test_one.py", '"sqlite+pysqlite:///x"', "warning"),
        ("tests/conftest.py", "new_database()", "ok"),
        ("tests/contract/conftest.py", '"sqlite:///x"', "ok"),
    ],
)
def test_tests_that_make_sqlite_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, status: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.setattr(of_server, "PROJECT_ROOT", tmp_path)
    found = of_server.tests()
    assert found.status == status
    assert status == "ok" or file in found.verdict


def test_writers_that_cannot_run_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, own = APIRouter(), Router()

    @plain.post("/plain")
    def plain_post(session: Writer) -> None: ...

    @plain.get("/plain")
    def plain_get(session: Reader) -> None: ...

    @own.post("/own")
    def own_post(session: Writer) -> None: ...

    @own.put("/own")
    async def own_put(session: Writer) -> None: ...

    def made(_: Any) -> FastAPI:
        app = FastAPI()
        app.include_router(plain)
        app.include_router(own)
        return app

    monkeypatch.setattr(assembly, "make_application", made)
    found = {finding.id: finding for finding in check.routes(settings)}["code.writers"]
    assert found.status == "warning"
    assert found.verdict == "a conflict with another writer is a 503: POST /plain, PUT /own"


def test_the_services_own_writers_run_again(settings: Settings) -> None:
    found = {finding.id: finding for finding in check.routes(settings)}["code.writers"]
    assert found.status == "ok", found.verdict
