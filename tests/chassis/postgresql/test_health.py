"""What /health says of a server that is not well, and the figures of `status`."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import psycopg
import pytest

from app.chassis import assembly, health, migrate
from app.chassis.checks.finding import Degraded, Unhealthy
from app.chassis.cli import main
from app.chassis.postgresql import health as of_server
from app.chassis.postgresql.local import Server
from app.settings import Settings


@pytest.fixture
def migrated(settings: Settings) -> Settings:
    migrate.upgrade(settings)
    return settings


def look(settings: Settings) -> None:
    assembly.engine.checks(settings, None)["database"]()


def told(settings: Settings) -> str:
    with pytest.raises(Unhealthy) as caught:
        look(settings)
    assert "127.0.0.1" not in str(caught.value)
    return str(caught.value)


@contextmanager
def relay(settings: Settings, answer: int = 0) -> Iterator[Settings]:
    """An address that takes connections and lets so many bytes of the server through."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def pump(source: socket.socket, target: socket.socket, left: float) -> None:
            with suppress(OSError):  # Whoever gives up closes the connection
                while not ended.is_set() and (data := source.recv(int(min(left, 4096)))):
                    target.sendall(data)
                    left -= len(data)
                    if left <= 0:
                        ended.wait()

        def serve() -> None:
            client, _ = listener.accept()
            with client, ExitStack() as stack:
                if not answer:
                    ended.wait()
                    return
                port = settings.url.port
                server = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                there = threading.Thread(target=pump, args=(client, server, float("inf")))
                there.daemon = True
                there.start()
                pump(server, client, answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = settings.url.set(drivername="postgresql", port=listener.getsockname()[1])
        yield Settings.load(database_url=url.render_as_string(hide_password=False))
        ended.set()
        thread.join(5)


def test_a_server_that_is_well(migrated: Settings) -> None:
    look(migrated)


def test_a_schema_that_is_behind(settings: Settings) -> None:
    assert told(settings) == "the database is not at this release's schema"


def test_a_server_that_is_stopped_and_its_return(server: Server, migrated: Settings) -> None:
    server.stop()
    try:
        assert told(migrated) == "the database does not answer"
    finally:
        server.start()
    look(migrated)


def test_a_database_that_is_not_there(migrated: Settings, server: Server) -> None:
    other = migrated.url.set(drivername="postgresql", database="nowhere").render_as_string()
    assert told(Settings.load(database_url=other)) == "the database does not answer"


def test_a_read_only_server(migrated: Settings, url: str) -> None:
    name = migrated.url.database
    with psycopg.connect(url) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert told(migrated) == "the database is read-only"


def test_a_standby(migrated: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    standby = of_server.STATE.replace("pg_is_in_recovery()", "true")
    assert standby != of_server.STATE
    monkeypatch.setattr(of_server, "STATE", standby)
    assert told(migrated) == "the database is a standby, or recovers"


def test_few_connections_are_degraded(migrated: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_server, "FULL", 0)
    with pytest.raises(Degraded, match="few connections left"):
        look(migrated)


@pytest.mark.parametrize("answer", [0, 200, 700])
def test_a_server_that_hangs_does_not_make_health_hang(migrated: Settings, answer: int) -> None:
    """It hangs before the session, during it, and in the middle of an answer."""
    with relay(migrated, answer) as through:
        began = time.monotonic()
        assert told(through) == of_server.SLOW
        assert time.monotonic() - began < 2 * of_server.SECONDS + 0.5


def test_a_statement_that_fails_is_told_without_its_text(
    migrated: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_server, "STATE", "SELECT 1 / 0")
    assert told(migrated) == "the database does not answer"


def figures(settings: Settings) -> dict[str, object]:
    checks = assembly.engine.checks(settings, None)
    return health.figures(health.Health(settings, checks), assembly.engine.figures(settings))


def test_status_has_figures_of_the_server(migrated: Settings, url: str) -> None:
    found = figures(migrated)
    assert found["status"] == "ok"
    assert found["recovery"] is False
    assert found["oldest_transaction_age"] is None
    assert str(found["server_version"])[0].isdecimal()
    assert isinstance(found["database_bytes"], int)
    assert isinstance(found["connections"], int)
    assert isinstance(found["connections_limit"], int)
    assert 0 < found["connections"] <= found["connections_limit"]
    assert found["revision"]

    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1")
        time.sleep(1.1)
        found = figures(migrated)
    assert isinstance(found["oldest_transaction_age"], float)
    assert found["oldest_transaction_age"] > 1
    lines = dict(line.split(maxsplit=1) for line in health.figure_lines(found, in_words(found)))
    assert lines["transactions"].startswith("the oldest began 1 second ago")
    assert lines["connections"].endswith("in use")


def in_words(found: dict[str, object]) -> dict[str, str]:
    return assembly.engine.in_words(found)


def test_status_without_a_server(settings: Settings, server: Server) -> None:
    other = settings.url.set(drivername="postgresql", database="nowhere").render_as_string()
    found = figures(Settings.load(database_url=other))
    assert found["status"] == "failed"
    assert found["database_bytes"] is None
    assert in_words(found) == {"database": found["database"]}


def test_the_command_and_its_json(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert main(["status"]) == 1
    assert main(["migrate"]) == 0
    capsys.readouterr()

    assert main(["status"]) == 0
    assert "PostgreSQL" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ok"
