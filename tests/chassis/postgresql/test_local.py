"""The server for one's own machine, as an ordinary user and as root."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from app.chassis.errors import StartupError
from app.chassis.postgresql import local
from app.chassis.postgresql.local import Server
from app.chassis.settings import PROJECT_ROOT


def ask(url: str, question: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(question.encode()).fetchone()
    return row and row[0]


def test_its_databases_belong_to_a_role_without_privileges(server: Server) -> None:
    first, second = server.new_database(), server.new_database()
    assert first != second
    for url in (server.url, first):
        assert ask(url, "SELECT current_user") == "app"
        assert ask(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE mine (id int)")
            connection.rollback()
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE template (id int)")
    copy = server.new_database(template=first.rpartition("/")[2])
    assert ask(copy, "SELECT count(*) FROM template") == 0


def test_only_this_machine_can_reach_it(server: Server) -> None:
    assert ask(server.url, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(server.address("app", "postgres"), "SHOW unix_socket_directories") == ""


def test_it_never_runs_as_root(server: Server) -> None:
    assert server._process is not None
    uid = Path(f"/proc/{server._process.pid}").stat().st_uid
    assert uid != 0
    assert (uid == os.geteuid()) or os.geteuid() == 0


def test_it_can_be_stopped_killed_and_started_again() -> None:
    with Server() as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1")
        for end in (server.stop, server.kill):
            end()
            with pytest.raises(psycopg.OperationalError):
                ask(server.url, "SELECT 1")
            server.start()
            assert ask(server.url, "SELECT count(*) FROM kept") == 1
        temporary = server.data.parent
    assert not temporary.exists()


def test_two_servers_run_beside_each_other(server: Server) -> None:
    with Server(None, None, "max_connections=7") as second:
        assert second.port != server.port
        assert ask(second.url, "SHOW max_connections") == "7"


def test_why_it_does_not_start_is_one_line() -> None:
    with (
        pytest.raises(StartupError, match="max_connections") as refused,
        Server(None, None, "max_connections=many"),
    ):
        pass
    assert "\n" not in str(refused.value)


def test_a_directory_is_kept_and_modes_of_others_are_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "deep" / "postgresql"
    modes = [path.stat().st_mode for path in tmp_path.parents]
    if local.user() and not local.is_reachable(tmp_path, local.user()["user"]):
        with pytest.raises(StartupError, match="ordinary user"), Server(directory):
            pass
        assert [path.stat().st_mode for path in tmp_path.parents] == modes
        return
    for rows in (0, 1):
        with Server(directory) as server, psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (id int)")
            row = connection.execute("SELECT count(*) FROM kept").fetchone()
            assert row == (rows,)
            connection.execute("INSERT INTO kept VALUES (1)")
    assert [path.stat().st_mode for path in tmp_path.parents] == modes


def run_command(port: int) -> "subprocess.Popen[str]":
    url = f"postgresql://app@127.0.0.1:{port}/app"
    return subprocess.Popen(
        [sys.executable, "-m", "app", "database"],
        cwd=PROJECT_ROOT,
        env=os.environ | {"DATABASE_URL": url, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = run_command(taken.getsockname()[1])
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is in use" in said
    assert "DATABASE_URL" in said
    assert said.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(number: signal.Signals) -> None:
    port = local.free_port()
    url = f"postgresql://app@127.0.0.1:{port}/app"
    with run_command(port) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line and os.geteuid() == 0:
            pytest.skip("as root it needs a project that other users can reach")
        assert url in line
        assert ask(url, "SELECT 1") == 1
        process.send_signal(number)
        assert process.wait(30) == 0
    with pytest.raises(psycopg.OperationalError):
        ask(url, "SELECT 1")
