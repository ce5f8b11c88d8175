"""How long a forecast of many services takes, against as many plain `copier update`s.

    python benchmarks/fleet.py [NUMBER]

Makes NUMBER services (20 by default) from the release 0.1.0 of a repository of this template, with
an edit each, and a release 0.2.0. Then one after the other, in turns, so that other work on the
machine slows both: a plain update of one of them, and the forecast of them all on two processes.
Prints the ratio to the time that two cores would take for the plain updates.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROUNDS = 2
PROCESSES = 2


def run(*command: str | Path, cwd: Path | None = None) -> float:
    """The seconds it takes."""
    started = time.perf_counter()
    subprocess.run([*map(str, command)], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def commit(directory: Path, message: str) -> None:
    run("git", "-C", directory, "init", "--quiet")
    run("git", "-C", directory, "add", "--all")
    run("git", "-C", directory, "commit", "--quiet", "--message", message)


def make_template(directory: Path) -> Path:
    """The files of the working tree as 0.1.0, and a 0.2.0 that changes some."""
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
            shutil.copy2(ROOT / name, directory / name)
    commit(directory, "First release")
    run("git", "-C", directory, "tag", "-a", "-m", "0.1.0", "0.1.0")
    chassis = directory / "template" / "app" / "chassis"
    for name in ("__init__.py", "http.py", "health.py", "boot.py"):
        text = (chassis / name).read_text(encoding="utf-8")
        (chassis / name).write_text(text + "# new in 0.2.0\n", encoding="utf-8")
    commit(directory, "Second release")
    run("git", "-C", directory, "tag", "-a", "-m", "0.2.0", "0.2.0")
    return directory


def make_services(directory: Path, template: Path, number: int) -> list[Path]:
    first = directory / "service-1"
    run(sys.executable, "-m", "copier", "copy", "-q", "--defaults", "-r", "0.1.0", template, first)
    with (first / "app" / "settings.py").open("a", encoding="utf-8") as file:
        file.write("# the service's own line\n")
    commit(first, "As rendered, with an edit")
    others = [directory / f"service-{n}" for n in range(2, number + 1)]
    for other in others:
        shutil.copytree(first, other)
    return [first, *others]


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ |= {
        f"GIT_{who}_{what}": "bench@example.com" if what == "EMAIL" else "Bench"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    with tempfile.TemporaryDirectory(prefix="fleet-benchmark-") as name:
        directory = Path(name)
        template = make_template(directory / "template")
        services = make_services(directory / "services", template, number)
        plain, forecast = [], []
        for turn in range(ROUNDS):
            plain += [update(service, directory) for service in services[turn::ROUNDS]]
            forecast.append(forecast_all(services))
            print(f"round {turn + 1} of {ROUNDS}: {forecast[-1]:.2f} s", flush=True)
        taken = run(sys.executable, "-m", "fleet.cli", "inventory", *services, cwd=ROOT)
    average = sum(plain) / len(plain)
    taken_by_all = sum(forecast) / len(forecast)
    print(f"inventory of {number} services: {taken:.2f} s")
    print(f"one plain update: {average:.2f} s ({min(plain):.2f} to {max(plain):.2f})")
    print(f"forecast of {number} services: {', '.join(f'{seconds:.2f}' for seconds in forecast)} s")
    ratio = taken_by_all / (average * number / PROCESSES)
    print(f"ratio to {number} plain updates on {PROCESSES} cores: {ratio:.2f}")


def update(service: Path, directory: Path) -> float:
    """Of a copy, so that the service stays behind."""
    copy = directory / "copy"
    shutil.copytree(service, copy)
    seconds = run(sys.executable, "-m", "copier", "update", "-q", "--defaults", copy)
    shutil.rmtree(copy)
    return seconds


def forecast_all(services: list[Path]) -> float:
    command = [sys.executable, "-m", "fleet.cli", "forecast", "--to", "0.2.0"]
    return run(*command, "--jobs", str(PROCESSES), *services, cwd=services[0].parent)


if __name__ == "__main__":
    main()
