"""Programs between a service and the others: Railway's edge before it, a pooler behind it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from support.postgres import Server, install, ordinary_user
from support.service import DEADLINE, free_port
from support.streams import nginx, wait_until

NGINX = """\
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
worker_processes 1;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream replicas {{
        {targets}
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
        }}
    }}
}}
"""

PGBOUNCER = """\
[databases]
app = host=127.0.0.1 port={server} dbname=app user=app

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
"""


@contextmanager
def own_directory() -> Iterator[Path]:
    """A directory of an ordinary user's; the tests' own ones are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="edge-"))
    if (user := ordinary_user()) is not None:
        os.chown(directory, user, -1)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def running(*command: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs as an ordinary user, until it is ended at once."""
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            user=ordinary_user(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Edge:
    """A proxy that sends each request to one replica, and to no other if that fails."""

    def __init__(self, directory: Path, *targets: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = directory
        self.config = directory / "nginx.conf"
        self.process: subprocess.Popen[bytes] | None = None
        self.write(*targets)

    def write(self, *targets: int) -> None:
        # a replica that has failed once is asked again
        lines = "\n        ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in targets)
        text = NGINX.format(directory=self.directory, port=self.port, targets=lines)
        self.config.write_text(text)

    def workers(self) -> set[int]:
        """Those of its processes that take connections."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {int(child) for child in children if not is_leaving(int(child))}

    def lead_to(self, *targets: int) -> None:
        """Send all requests from now on to other replicas. Those on their way go on."""
        before = self.workers()
        self.write(*targets)
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not before & self.workers())

    def errors(self) -> str:
        """What it has to tell of requests that have failed."""
        lines = (self.directory / "nginx.log").read_text().splitlines()
        return "\n".join(line for line in lines if "[notice]" not in line)


def is_leaving(pid: int) -> bool:
    try:
        return b"shutting down" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def edge(*targets: int) -> Iterator[Edge]:
    """An edge in front of the replicas at these ports."""
    program = nginx()
    with own_directory() as directory:
        edge = Edge(directory, *targets)
        command = [program, "-e", directory / "nginx.log", "-p", directory, "-c", edge.config]
        with running(*command, log=directory / "output") as process:
            edge.process = process
            # a worker is one only when it has its title
            wait_until(lambda: edge.workers() and accepts(edge.port))
            yield edge


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def pooler(server: Server, size: int) -> Iterator[str]:
    """The address of a PgBouncer that has so many connections to the server."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    install("pgbouncer", lambda: shutil.which("pgbouncer", path=path))
    port = free_port()
    url = f"postgresql://app@127.0.0.1:{port}/app"
    with own_directory() as directory:
        config, log = directory / "pgbouncer.ini", directory / "output"
        config.write_text(PGBOUNCER.format(server=server.port, port=port, size=size))
        program = shutil.which("pgbouncer", path=path)
        with running(program, config, log=log) as process:
            deadline = time.monotonic() + DEADLINE
            while True:
                assert process.poll() is None, log.read_text()
                try:
                    psycopg.connect(url, connect_timeout=5).close()
                except psycopg.OperationalError:
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
                else:
                    break
            yield url
