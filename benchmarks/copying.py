"""What it takes to make a project, to update one, and to look after many."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks import sides
from benchmarks.runs import Effort, Result, Target, interleave

PLAIN = "copier, as many files"
ONE_FILE = "copier, one file"
PROCESSES = 2


@contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="trackbed-benchmark-") as directory:
        yield Path(directory)


def copy(effort: Effort) -> Result:
    """`copier copy` with the defaults, against templates of as many files and of one file.

    The first of the two is the floor: as many paths, without a question or a condition.
    """
    result = Result()
    with temporary() as directory:
        template = sides.copy_template(directory / "template")
        plain, small = directory / "plain", directory / "small"

        def timed(source: Path) -> float:
            target = directory / "copy"
            seconds = sides.copier("copy", "-q", "--defaults", "-r", "0.1.0", source, target)
            shutil.rmtree(target)
            return seconds

        sides.copier("copy", "-q", "--defaults", "-r", "0.1.0", template, plain / "template")
        (plain / "template" / ".copier-answers.yml").unlink()
        make_template(plain, plain / "template", "_subdirectory: template\n")
        make_template(small, small)
        (small / "README.md.jinja").write_text("# {{ name }}\n")
        for one in (plain, small):
            sides.commit(one, "First release", "0.1.0")
        times = effort.pairs if effort.quick else 2 * effort.pairs
        mine, floor, theirs = interleave(
            times, *(partial(timed, one) for one in (template, plain, small))
        )
    result.add("copier copy", "s", mine, floor, PLAIN, Target("at most", 1.7))
    result.add("copier copy", "s", mine, theirs, ONE_FILE)
    return result


def make_template(directory: Path, files: Path, settings: str = "") -> None:
    """Write what makes a directory a template: a question, and the record of its answer."""
    directory.mkdir(exist_ok=True)
    question = "name:\n  type: str\n  default: service\n"
    (directory / "copier.yml").write_text(settings + question)
    (files / "{{ _copier_conf.answers_file }}.jinja").write_text(
        "{{ _copier_answers|to_nice_yaml }}"
    )


def update(effort: Effort) -> Result:
    """`copier update` over one release, without a conflict, against a copy."""
    result = Result()
    with temporary() as directory:
        template = sides.copy_template(directory / "template")
        sides.release(template)
        (service,) = make_services(directory / "services", template, 1)

        def copying() -> float:
            target = directory / "copy"
            seconds = sides.copier("copy", "-q", "--defaults", "-r", "0.2.0", template, target)
            shutil.rmtree(target)
            return seconds

        mine, theirs = interleave(effort.pairs, lambda: update_one(service, directory), copying)
    result.add("copier update", "s", mine, theirs, "copier copy", Target("at most", 3))
    return result


def make_services(directory: Path, template: Path, number: int) -> list[Path]:
    """From 0.1.0, with an edit each."""
    first = directory / "service-1"
    sides.copier("copy", "-q", "--defaults", "-r", "0.1.0", template, first)
    with (first / "app" / "settings.py").open("a", encoding="utf-8") as file:
        file.write("# the service's own line\n")
    sides.commit(first, "As rendered, with an edit")
    others = [directory / f"service-{n}" for n in range(2, number + 1)]
    for other in others:
        shutil.copytree(first, other)
    return [first, *others]


def update_one(service: Path, directory: Path) -> float:
    """Of a copy, so that the service stays behind."""
    target = directory / "updated"
    shutil.copytree(service, target)
    seconds = sides.copier("update", "-q", "--defaults", target)
    shutil.rmtree(target)
    return seconds


def fleet(effort: Effort) -> Result:
    """The forecast of many services, against plain updates of them on as many cores."""
    result = Result()
    number, many = (4, 10) if effort.quick else (20, 100)
    with temporary() as directory:
        template = sides.copy_template(directory / "template")
        sides.release(template)
        services = make_services(directory / "services", template, many)

        def plainly() -> float:
            """What they would take on so many cores, by two of them."""
            seconds = sum(update_one(service, directory) for service in services[:2])
            return seconds / 2 * number / PROCESSES

        def forecast() -> float:
            options = ["--to", "0.2.0", "--jobs", str(PROCESSES)]
            return trackbed_fleet("forecast", *options, *services[:number], cwd=directory)

        mine, theirs = interleave(max(2, effort.pairs // 2), forecast, plainly)
        listed = [
            trackbed_fleet("inventory", *services, cwd=directory) for _ in range(effort.pairs)
        ]
    result.add(
        f"forecast of {number}",
        "s",
        mine,
        theirs,
        "plain updates on 2 cores",
        Target("at most", 1.2),
    )
    result.add(f"inventory of {many}", "s", listed, target=Target("at most", 5, "value"))
    return result


def trackbed_fleet(*arguments: str | Path, cwd: Path) -> float:
    return sides.run(
        sys.executable,
        "-m",
        "trackbed.cli",
        "fleet",
        *arguments,
        cwd=cwd,
        PYTHONPATH=str(sides.ROOT),
    )
