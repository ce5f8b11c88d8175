"""PostgreSQL servers that break, hang, stand by or move under a service, and its migrations."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from support.load import WRITERS, Load, during, health, wait_for_health
from support.postgres import WHEEL, Server, Standby, debian
from support.relay import Relay
from support.service import FORMS, Service

pytestmark = pytest.mark.long

Record = Callable[[str, object], None]

NOTICED = 15.0
"""Seconds in which /health has to tell of a fault, and of its end. It takes about two."""

AWAY = 20.0
"""Seconds for which the server does not answer."""

CONNECTIONS = 24
"""Connections of the server that runs out of them."""

KILLS = 6
CUTS = 100
STEPS = 10
STEP_SECONDS = 0.1

REVISION = f"""
import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table("moves", sa.Column("step", sa.Integer(), primary_key=True))
    op.add_column("notes", sa.Column("step", sa.Integer()))
    for step in range({STEPS}):
        op.execute(f"INSERT INTO moves VALUES ({{step}})")
        op.execute(
            "UPDATE notes SET text = 'moved ' || text, step = {{0}} "
            "WHERE id % {STEPS} = {{0}}".format(step)
        )
        time.sleep({STEP_SECONDS})
"""

NOT_ANSWERING = "the database does not answer"
IN_TIME = "the database does not answer in time"


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Path:
    return installed(database="postgresql")


@pytest.fixture(scope="module")
def release(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next release of the project, with a slow revision in many steps."""
    release = tmp_path_factory.mktemp("release") / "project"
    shutil.copytree(project, release, ignore=shutil.ignore_patterns(".venv"))
    (release / ".venv").symlink_to(project / ".venv")
    (release / "migrations" / "versions" / "0002_moves.py").write_text(REVISION)
    return release


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that every test leaves as it has found it, without tables."""
    with Server() as server:
        yield server


@pytest.fixture
def empty(server: Server) -> Server:
    server.execute("DROP OWNED BY app")
    return server


def address(port: int) -> str:
    return f"postgresql://app@127.0.0.1:{port}/app"


def texts(server: Server) -> list[str]:
    return [text for (text,) in server.execute("SELECT text FROM notes ORDER BY id")]


def require_nothing_lost(load: Load, kept: list[str], record_property: Record) -> None:
    """What was acknowledged is there and nothing twice, and every refusal said when to come back.

    A commit whose answer was cut off is refused, and may be there.
    """
    slowest = max(answer.ended - answer.began for answer in load.answers)
    written = load.written()
    record_property("slowest answer (s)", round(slowest, 2))
    record_property("rows acknowledged, lost", f"{len(written)}, {len(set(written) - set(kept))}")
    assert set(written) <= set(kept)
    assert len(kept) == len(set(kept))
    assert set(kept) <= {answer.text for answer in load.between(0, "POST")}
    assert load.statuses(0)["POST"] <= {201, 503}
    assert load.statuses(0)["GET"] <= {200, 503}
    refused = [answer for answer in load.answers if answer.status == 503]
    assert all(answer.body["detail"] and answer.headers["retry-after"] for answer in refused)
    assert load.broken_off == 0


def live_through(
    service: Service,
    fault: Iterator[None],
    cause: str,
    record_property: Record,
    seconds: float = 0,
    refusals: int = 2 * WRITERS,
) -> tuple[Load, dict[str, set[int]]]:
    """A service under load: well, broken for some seconds, and well again by itself."""
    with Load(service.url, "x" * 100).running() as load:
        load.wait_for(201, 50, since=0)
        began = time.monotonic()
        with during(fault):
            noticed, message = wait_for_health(service, 503, NOTICED)
            told = time.monotonic()
            # requests that had begun before may be on their way still
            load.wait_for(503, refusals, since=told)
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            assert health(service)[0] == 503
            assert service.client.get("/health/live").status_code == 200
            mended = time.monotonic()
        recovered, _ = wait_for_health(service, 200, NOTICED)
        well = time.monotonic()
        load.wait_for(201, 50, since=well)
    record_property("noticed and recovered after (s)", f"{noticed:.2f}, {recovered:.2f}")
    assert cause in message
    return load, load.statuses(told, until=mended)


def require_good_stop(service: Service) -> None:
    service.terminate()
    assert service.ended() == 0, service.output()
    assert "Traceback" not in service.output(), service.output()


def restarted(server: Server) -> Iterator[None]:
    """Stopped as for an update of the server, and started again."""
    server.stop()
    yield
    server.start()


def killed(server: Server) -> Iterator[None]:
    """Again and again, at any moment, so that commits are cut whose outcome nobody knows."""
    server.kill()
    yield
    server.start()
    for _ in range(KILLS):
        time.sleep(random.random())
        server.kill()
        server.start()


@pytest.mark.parametrize(
    ("programs", "fault"),
    [
        pytest.param(lambda: WHEEL, restarted, id="restarted"),
        pytest.param(lambda: WHEEL, killed, id="killed"),
        pytest.param(debian, killed, id="killed, PostgreSQL 15"),
    ],
)
def test_a_server_that_ends_and_comes_back(
    project: Path,
    tmp_path: Path,
    programs: Callable[[], Path],
    fault: Callable[[Server], Iterator[None]],
    record_property: Record,
) -> None:
    variables = {"LOG_LEVEL": "WARNING", "WORKERS": "2"}
    with Server(programs()) as server:
        variables["DATABASE_URL"] = server.url
        with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
            load, statuses = live_through(service, fault(server), NOT_ANSWERING, record_property)
            require_good_stop(service)
        assert statuses == {"GET": {503}, "POST": {503}}
        require_nothing_lost(load, texts(server), record_property)


def test_connections_that_are_cut(
    project: Path, tmp_path: Path, empty: Server, record_property: Record
) -> None:
    """At any moment, also after a commit whose answer is on its way: nothing is written twice."""
    with Relay(empty.port, delay=0.01) as relay:
        variables = {"DATABASE_URL": address(relay.port), "LOG_LEVEL": "WARNING"}
        with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
            with Load(service.url, "x").running() as load:
                load.wait_for(201, 10, since=0)
                for _ in range(CUTS):
                    time.sleep(random.uniform(0.0, 0.1))
                    relay.cut()
                load.wait_for(201, 10, since=time.monotonic())
            assert health(service)[0] == 200
            require_good_stop(service)
    refused = [answer.method for answer in load.answers if answer.status == 503]
    record_property("answers, and those that were refused", (len(load.answers), Counter(refused)))
    require_nothing_lost(load, texts(empty), record_property)


def test_a_network_that_is_down(
    project: Path, tmp_path: Path, empty: Server, record_property: Record
) -> None:
    """Nothing is answered or refused. The kernel gives up a connection, and then a new one."""

    def down() -> Iterator[None]:
        with relay.silent():
            yield

    with Relay(empty.port) as relay:
        variables = {"DATABASE_URL": address(relay.port), "LOG_LEVEL": "WARNING"}
        with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
            load, statuses = live_through(service, down(), IN_TIME, record_property, AWAY, WRITERS)
            require_good_stop(service)
    assert statuses["POST"] == {503}
    assert statuses["GET"] <= {503}
    require_nothing_lost(load, texts(empty), record_property)


def test_a_server_that_hangs(
    project: Path, tmp_path: Path, empty: Server, record_property: Record
) -> None:
    """Its kernel still answers, so requests in hand wait for it. Those after them do not."""

    def hanging() -> Iterator[None]:
        with empty.frozen():
            yield

    variables = {
        "DATABASE_URL": empty.url,
        "LOG_LEVEL": "WARNING",
        # one reader and one writer, so that most clients have to wait for others
        "DATABASE_CONNECTIONS": "2",
    }
    with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
        load, statuses = live_through(service, hanging(), IN_TIME, record_property, AWAY)
        require_good_stop(service)
    assert statuses["POST"] == {503}
    require_nothing_lost(load, texts(empty), record_property)


def read_only(server: Server) -> Iterator[None]:
    """As a provider makes a database whose disk is nearly full."""
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")
    yield
    server.execute("ALTER SYSTEM RESET default_transaction_read_only")
    server.execute("SELECT pg_reload_conf()")


def test_a_read_only_server(
    project: Path, tmp_path: Path, empty: Server, record_property: Record
) -> None:
    variables = {"DATABASE_URL": empty.url, "LOG_LEVEL": "WARNING"}
    with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
        cause = "the database is read-only"
        load, statuses = live_through(service, read_only(empty), cause, record_property)
        require_good_stop(service)
    assert statuses == {"GET": {200}, "POST": {503}}
    require_nothing_lost(load, texts(empty), record_property)


def test_a_standby_takes_over_at_the_same_address(
    project: Path, tmp_path: Path, record_property: Record
) -> None:
    """The address changes to a standby, which can be read only until it is promoted."""

    def failover() -> Iterator[None]:
        primary.kill()
        relay.lead_to(standby.port)
        yield
        standby.promote()

    with (
        Server() as primary,
        Standby(primary) as standby,
        Relay(primary.port) as relay,
    ):
        # what is acknowledged is on both, as where nothing may be lost
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.execute("SELECT pg_reload_conf()")
        variables = {"DATABASE_URL": address(relay.port), "LOG_LEVEL": "WARNING"}
        with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
            load, statuses = live_through(service, failover(), "", record_property)
            require_good_stop(service)
        assert statuses == {"GET": {200}, "POST": {503}}
        require_nothing_lost(load, texts(standby), record_property)


def test_a_start_on_a_standby(project: Path, tmp_path: Path) -> None:
    """A service that finds a standby serves what can be read, and says what is wrong."""
    with Server() as primary:
        with Service(
            project, tmp_path / "first", DATABASE_URL=primary.url
        ).wait_until_healthy() as service:
            assert service.client.post("/notes", json={"text": "before"}).status_code == 201
            require_good_stop(service)
        with Standby(primary) as standby:
            with Service(project, tmp_path / "second", DATABASE_URL=standby.url) as service:
                service.wait_for("Application startup complete")
                assert health(service) == (503, "the database is a standby, or recovers")
                assert service.notes() == ["before"]
                refused = service.client.post("/notes", json={"text": "refused"})
                assert refused.status_code == 503
                standby.promote()
                wait_for_health(service, 200, NOTICED)
                assert service.client.post("/notes", json={"text": "after"}).status_code == 201
                require_good_stop(service)
            assert texts(standby) == ["before", "after"]


def test_a_server_without_free_connections(
    project: Path, tmp_path: Path, record_property: Record
) -> None:
    """Others have taken what the server has, but for those that the service has open."""
    variables = {"LOG_LEVEL": "WARNING"}
    with (
        Server(max_connections=CONNECTIONS) as server,
        Service(project, tmp_path / "data", DATABASE_URL=server.url, **variables) as service,
    ):

        def taken() -> Iterator[None]:
            with ExitStack() as others:
                with suppress(psycopg.OperationalError):
                    while True:
                        others.enter_context(psycopg.connect(server.url))
                yield

        service.wait_until_healthy()
        with Load(service.url, "x").running() as load:
            load.wait_for(201, 50, since=0)
            with during(taken()):
                noticed, message = wait_for_health(service, 503, NOTICED)
                told = time.monotonic()
                load.wait_for(201, 50, since=told)
                mended = time.monotonic()
            recovered, _ = wait_for_health(service, 200, NOTICED)
        require_good_stop(service)
        record_property("noticed and recovered after (s)", f"{noticed:.2f}, {recovered:.2f}")
        assert message == NOT_ANSWERING
        # the log has the server's own words
        assert "clients" in service.output() or "connection slots" in service.output()
        assert load.statuses(told, until=mended) == {"GET": {200}, "POST": {201}}
        require_nothing_lost(load, texts(server), record_property)


def command(project: Path, data: Path, server: Server, *arguments: str) -> Service:
    """A command of the project, which runs."""
    form = [*FORMS["exec"], *arguments]
    return Service(project, data, form, DATABASE_URL=server.url)


def version(server: Server) -> list[tuple[str]]:
    return server.execute("SELECT version_num FROM alembic_version")


def fill(project: Path, data: Path, server: Server) -> list[str]:
    """Notes of the first release."""
    with command(project, data, server, "migrate") as migrate:
        assert migrate.ended() == 0, migrate.output()
    server.execute(
        "INSERT INTO notes (text, created_at) "
        "SELECT 'note ' || n, now() FROM generate_series(1, 200) n"
    )
    return texts(server)


def test_migrations_at_once(project: Path, release: Path, tmp_path: Path, empty: Server) -> None:
    """A deploy's own command and the starts of several replicas: each revision is run once."""
    for code, head in ((project, "0001"), (release, "0002")):
        data = tmp_path / head
        with ExitStack() as stack:
            migrations = [
                stack.enter_context(command(code, data, empty, "migrate")) for _ in range(2)
            ]
            services = [stack.enter_context(command(code, data, empty)) for _ in range(2)]
            for service in services:
                service.wait_until_healthy()
            assert [migration.ended() for migration in migrations] == [0, 0]
            outputs = [process.output() for process in (*migrations, *services)]
            assert sum(f"migrated to {head}" in output for output in outputs) == 1, outputs
            for service in services:
                require_good_stop(service)
        assert version(empty) == [(head,)]


def test_a_migration_killed_half_way(
    project: Path, release: Path, tmp_path: Path, empty: Server, record_property: Record
) -> None:
    before = fill(project, tmp_path / "filled", empty)
    after = sorted(f"moved {text}" for text in before)
    seen: Counter[str] = Counter()
    for number in range(KILLS):
        with command(release, tmp_path / f"kill-{number}", empty, "migrate") as migrate:
            migrate.wait_for("Running upgrade 0001 -> 0002")
            time.sleep(random.random() * STEPS * STEP_SECONDS * 0.9)
            os.killpg(migrate.process.pid, signal.SIGKILL)
            migrate.process.wait()
        assert texts(empty) == before
        assert version(empty) == [("0001",)]
        assert empty.execute("SELECT to_regclass('moves')") == [(None,)]
        seen["nothing of it"] += 1
    record_property("kills in a migration, and what they left", dict(seen))
    with command(release, tmp_path / "again", empty).wait_until_healthy() as service:
        assert "migrated to 0002" in service.output()
        assert sorted(service.notes()) == after
        require_good_stop(service)


def test_old_code_on_the_new_schema(
    project: Path, release: Path, tmp_path: Path, empty: Server, record_property: Record
) -> None:
    """The release before serves while the next one migrates, afterwards, and after a rollback."""
    with command(project, tmp_path / "old", empty).wait_until_healthy() as old:
        with Load(old.url, "x").running() as load:
            load.wait_for(201, 50, since=0)
            with command(release, tmp_path / "migrate", empty, "migrate") as migrate:
                assert migrate.ended() == 0, migrate.output()
            migrated = time.monotonic()
            load.wait_for(201, 50, since=migrated)
        assert health(old) == (200, "")
        require_good_stop(old)
    with command(project, tmp_path / "rollback", empty).wait_until_healthy() as again:
        assert "which this code does not know" in again.output()
        assert again.client.post("/notes", json={"text": "rollback"}).status_code == 201
        require_good_stop(again)
    kept = [text.removeprefix("moved ") for text in texts(empty)]
    assert kept.pop() == "rollback"
    assert load.statuses(0) == {"GET": {200}, "POST": {201}}
    require_nothing_lost(load, kept, record_property)
    assert version(empty) == [("0002",)]
