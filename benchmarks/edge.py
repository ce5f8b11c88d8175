"""nginx as a platform's edge: it sends a request to one replica, and to no other if that fails."""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks import sides
from benchmarks.runs import MissingTool

CONFIG = """\
daemon off;
{user}
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream replicas {{
        {targets}
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_next_upstream off;
        }}
    }}
}}
"""


class Edge(sides.Server):
    """An address before one or several servers, whose memory and processor time are theirs."""

    def __init__(self, directory: Path, *servers: sides.Server) -> None:
        program = shutil.which("nginx", path=f"{sides.search_path()}:/usr/sbin")
        if program is None:
            raise MissingTool("nginx, the edge, is missing; install it: apt-get install nginx")
        self.servers: Sequence[sides.Server] = servers
        self.directory = directory
        directory.mkdir()
        port = sides.free_port()
        self.write(port)
        options = ["-e", directory / "nginx.log", "-p", directory]
        command = [program, *options, "-c", directory / "nginx.conf"]
        super().__init__("edge", command, port, directory, directory, {}, "/health")

    def write(self, port: int) -> None:
        targets = (f"server 127.0.0.1:{server.port} max_fails=0;" for server in self.servers)
        text = CONFIG.format(
            directory=self.directory,
            port=port,
            targets="\n        ".join(targets),
            user="" if os.geteuid() else "user root;",
        )
        (self.directory / "nginx.conf").write_text(text)

    def lead_to(self, *servers: sides.Server) -> None:
        """Send all requests from now on to others; those on their way go on."""
        self.servers = servers
        self.write(self.port)
        before = self.workers()
        self.process.send_signal(signal.SIGHUP)
        while before & self.workers():
            time.sleep(0.01)

    def workers(self) -> set[str]:
        """The processes that take connections."""
        found = set()
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for child in children:
            with suppress(OSError):
                if b"shutting down" not in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(child)
        return found

    def cpu(self) -> float:
        return sum(server.cpu() for server in self.servers)

    def pss(self) -> float:
        return sum(server.pss() for server in self.servers)

    def switches(self) -> int:
        return sum(server.switches() for server in self.servers)
