"""Threads of the database that make its routes fast, each beside the plain way."""

import shutil
from contextlib import ExitStack

from benchmarks import sides
from benchmarks.runs import OURS, Effort, Result, interleave
from benchmarks.serving import ROWS, costs, faults, mixing, rates

WAYS = {
    "readers": ("", "readers in the stock thread pool"),
    "writer": ("", "writer in a one-thread executor, no groups"),
    "readers,writer": ("", "both of these"),
    "disk,writer": ("disk", "no groups, commits 5 ms slower on both sides"),
}
"""Values of `PLAIN` in without.py, each with the value that it is compared with and its name."""


def mechanisms(effort: Effort) -> Result:
    """The mixed load on the service, and on the same service with one mechanism made plain."""
    result = Result()
    project = sides.project("mechanisms")
    shutil.copy2(sides.ROOT / "benchmarks" / "without.py", project / "app" / "plain.py")
    with (project / "app" / "main.py").open("a", encoding="utf-8") as file:
        file.write("\nimport app.plain\n")
    with ExitStack() as stack:
        directory = stack.enter_context(sides.workspace())
        loads = {}
        for plain in ("", "disk", *WAYS):
            data = directory / f"plain-{plain}"
            sides.seed(project, data, ROWS)
            server = stack.enter_context(sides.ours(project, data, PLAIN=plain))
            server.wait()
            loads[plain] = mixing(server, data, effort.seconds)
        found = dict(zip(loads, interleave(effort.pairs, *loads.values()), strict=True))
    for plain, runs in found.items():
        result.errors += faults(plain or OURS, [run for run, _ in runs])
        if lost := sum(lost for _, lost in runs):
            result.errors.append(f"{plain or OURS}: {lost} updates lost")
    for plain, (beside, name) in WAYS.items():
        ours, other = [run for run, _ in found[beside]], [run for run, _ in found[plain]]
        tails = [[run.load.p99 for run in side] for side in (ours, other)]
        result.add("requests a second", "1/s", rates(ours), rates(other), name)
        result.add("99 % answered within", "ms", *tails, name)
        result.add("CPU a request", "us", costs(ours), costs(other), name)
    return result
