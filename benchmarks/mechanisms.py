"""Threads of the database that make its routes fast, each beside the plain way."""

import shutil
from contextlib import ExitStack

from benchmarks import sides
from benchmarks.runs import OURS, Effort, Result, interleave
from benchmarks.serving import ROWS, costs, faults, mixing, pressing, rates

WAYS = {
    "readers": ("", "AnyIO's threads, a limiter of 4"),
    "four": ("", "four threads, each result at once"),
    "writer": ("", "writer in a one-thread executor, no groups"),
    "disk,writer": ("disk", "no groups, commits 5 ms slower on both sides"),
}
"""Values of `PLAIN` in without.py, each with the value that it is compared with and its name."""

READING = {"readers", "four"}
"""Ways that are about reads. One row is read, by 32 clients; the others have the mixed load."""


def mechanisms(effort: Effort) -> Result:
    """The service, and the same service with one mechanism made plain."""
    result = Result()
    project = sides.project("mechanisms")
    shutil.copy2(sides.ROOT / "benchmarks" / "without.py", project / "app" / "plain.py")
    with (project / "app" / "main.py").open("a", encoding="utf-8") as file:
        file.write("\nimport app.plain\n")
    with ExitStack() as stack:
        directory = stack.enter_context(sides.workspace())
        reads, mixes = {}, {}
        for plain in ("", "disk", *WAYS):
            data = directory / f"plain-{plain}"
            sides.seed(project, data, ROWS)
            server = stack.enter_context(sides.ours(project, data, PLAIN=plain))
            server.wait()
            if not plain or plain in READING:
                reads[plain] = pressing(server, "/notes/1", effort.seconds)
            if plain not in READING:
                mixes[plain] = mixing(server, data, effort.seconds)
        read = dict(zip(reads, interleave(effort.pairs, *reads.values()), strict=True))
        mixed = dict(zip(mixes, interleave(effort.pairs, *mixes.values()), strict=True))
    runs = {plain: [run for run, _ in found] for plain, found in mixed.items()}
    for plain, found in [*read.items(), *runs.items()]:
        result.errors += faults(plain or OURS, found)
    for plain, found in mixed.items():
        if lost := sum(lost for _, lost in found):
            result.errors.append(f"{plain or OURS}: {lost} updates lost")
    for plain, (beside, name) in WAYS.items():
        of = read if plain in READING else runs
        ours, other = of[beside], of[plain]
        tails = [[run.load.p99 for run in side] for side in (ours, other)]
        result.add("requests a second", "1/s", rates(ours), rates(other), name)
        result.add("99 % answered within", "ms", *tails, name)
        result.add("CPU a request", "us", costs(ours), costs(other), name)
        switches = [[run.switches for run in side] for side in (ours, other)]
        result.add("changes of threads a request", "", *switches, name)
    return result
