"""What a start takes, and what an idle service does."""

import time
from pathlib import Path
from statistics import median

from benchmarks import sides
from benchmarks.runs import Effort, Result, Target, interleave

BARE = "bare FastAPI"
SETTLED = 5.0

STEPS = {
    "Python itself": "pass",
    "the settings": "from app.settings import Settings; Settings.load()",
    "the steps before the server": "from app.chassis.serve import prepare; import app.settings; "
    "settings = app.settings.Settings.load(); prepare(settings, settings.bind)",
    "gunicorn": "import gunicorn.app.wsgiapp, gunicorn.arbiter, app.chassis.gunicorn",
    "FastAPI, uvicorn and the loop": "import fastapi, uvicorn, uvloop, httptools",
    "the application": "import app.main; app.main.create_app()",
}
"""Each in a process of its own, so each begins with Python itself."""


def boot(effort: Effort) -> Result:
    """From the start command to the first healthy answer."""
    result = Result()
    project = sides.project("default")
    with sides.workspace() as directory:
        sides.seed(project, directory / "ours", 1000)
        variables = sides.variables(directory / "ours", 8000)
        fresh = iter(range(1000))

        def again() -> float:
            with sides.ours(project, directory / "ours") as server:
                return server.wait()

        def bare() -> float:
            with sides.floor(project, directory / "bare") as server:
                return server.wait()

        def first() -> float:
            with sides.ours(project, directory / f"fresh-{next(fresh)}") as server:
                return server.wait()

        def step(code: str) -> float:
            python = project / ".venv/bin/python"
            return sides.run(python, "-c", code, cwd=project, **variables)

        again(), bare()
        mine, theirs, empty = interleave(2 * effort.pairs, again, bare, first)
        times = 1 if effort.quick else effort.pairs
        steps = interleave(times, *(lambda code=code: step(code) for code in STEPS.values()))
    result.add("first healthy answer", "s", mine, theirs, BARE, Target("at most", 2))
    result.add("the same with an empty volume", "s", empty, theirs, BARE, Target("at most", 2.4))
    for name, seconds in zip(STEPS, steps, strict=True):
        result.notes.append(f"{name}: {1000 * median(seconds):.0f} ms")
    return result


def idle(effort: Effort) -> Result:
    """Memory of a service that nobody asks anything of but its health."""
    result = Result()
    plain = sides.project("default")
    replicated = sides.project("litestream", "backup=litestream")

    def alone() -> float:
        with sides.workspace() as directory:
            return settled(plain, directory / "data")

    def with_litestream() -> float:
        with sides.workspace() as directory, sides.bucket(directory) as variables:
            return settled(replicated, directory / "data", **variables)

    mine, copied, theirs = interleave(
        max(2, effort.pairs // 2), alone, with_litestream, lambda: bare_idle(plain)
    )
    memory = "memory (PSS)"
    result.add(memory, "MB", mine, theirs, BARE, Target("at most", 80, "value"))
    target = Target("at most", 115, "value")
    result.add(f"{memory} with Litestream", "MB", copied, theirs, BARE, target)
    return result


def settled(project: Path, data: Path, **variables: str) -> float:
    sides.seed(project, data, 1000, **variables)
    with sides.ours(project, data, **variables) as server:
        server.wait()
        return rest(server)


def bare_idle(project: Path) -> float:
    with sides.workspace() as directory, sides.floor(project, directory) as server:
        server.wait()
        return rest(server)


def rest(server: sides.Server) -> float:
    """Its memory some seconds after a few health checks."""
    for _ in range(20):
        server.get(server.health)
    time.sleep(SETTLED)
    return server.pss()
