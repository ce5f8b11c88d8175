"""`python -m benchmarks [NAME ...]`: measure, and show it beside what is promised."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import (
    copying,
    deploying,
    image,
    mechanisms,
    peers,
    postgresql,
    report,
    serving,
    soaking,
    starting,
    streaming,
)
from benchmarks.runs import QUICK, Effort, MissingTool, Result

Benchmark = Callable[[Effort], Result]

BENCHMARKS: dict[str, Benchmark] = {
    "trivial": serving.trivial,
    "health": serving.health,
    "mixed": serving.mixed,
    "inserts": serving.inserts,
    "workers": serving.workers,
    "rows": serving.rows,
    "boot": starting.boot,
    "deploy": deploying.deploy,
    "idle": starting.idle,
    "copy": copying.copy,
    "update": copying.update,
    "fleet": copying.fleet,
    "streams": streaming.streams,
    "soak": soaking.soak,
    "image": image.image,
    "postgresql": postgresql.postgresql,
    "peers": peers.peers,
    "mechanisms": mechanisms.mechanisms,
}
ONLY_BY_NAME: frozenset[str] = frozenset({"soak", "image", "postgresql", "peers", "mechanisms"})
CHEAP = ("trivial", "health", "mixed", "boot", "copy")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 with a run that counts for nothing, 2 for a wrong command."""
    options = make_parser().parse_args(arguments)
    if options.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:11} {(benchmark.__doc__ or '').splitlines()[0]}")
        return 0
    if options.draw:
        report.draw(report.load(options.json), BENCHMARKS)
        return 0
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        print(
            f"No benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}",
            file=sys.stderr,
        )
        return 2
    try:
        return measure(options)
    except (MissingTool, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; see --list")
    parser.add_argument("--all", action="store_true", help="also those that take very long")
    parser.add_argument(
        "--quick", action="store_true", help="within two minutes; too short to be kept"
    )
    parser.add_argument(
        "--minutes", type=float, default=Effort.minutes, metavar="N", help="how long a soak lasts"
    )
    parser.add_argument("--list", action="store_true", help="the benchmarks, and end")
    parser.add_argument(
        "--draw",
        action="store_true",
        help="charts, tables and help texts from the results, and end",
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help=f"the results, instead of {report.RESULTS.name}"
    )
    return parser


def measure(options: argparse.Namespace) -> int:
    isolate()
    everything = [name for name in BENCHMARKS if options.all or name not in ONLY_BY_NAME]
    names = options.names or (CHEAP if options.quick else everything)
    if options.quick:
        print("Quick: few and short runs, whose figures are worth little. Nothing is kept.")
    effort = replace(QUICK if options.quick else Effort(), minutes=options.minutes)
    found: dict[str, Result] = {}
    for name in names:
        started, where = time.monotonic(), report.machine()
        found[name] = BENCHMARKS[name](effort)
        print(report.as_text(name, found[name]), flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s\n", flush=True)
        if not options.quick or options.json:
            report.keep(name, found[name], options.json, where)
    if not options.quick and options.json is None:
        report.draw(report.load(), BENCHMARKS)
    return 1 if any(result.errors for result in found.values()) else 0


def isolate() -> None:
    """No settings of this machine's user: neither git's nor Copier's."""
    os.environ |= {
        f"GIT_{who}_{what}": "bench@example.com" if what == "EMAIL" else "Bench"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    os.environ["PYTHONUTF8"] = "1"
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        os.environ.pop(name, None)


if __name__ == "__main__":
    sys.exit(main())
