"""What a process and everything it has started take: memory and processor time, from /proc."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> Iterator[int]:
    """The process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def pss(pid: int) -> float:
    """Megabytes; what processes share is divided among them (proc_pid_smaps(5))."""
    return sum(kilobytes(process) for process in tree(pid)) / 1024


def kilobytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def cpu(pid: int) -> float:
    """Seconds so far, in user and kernel mode."""
    return sum(ticks(process) for process in tree(pid)) / TICKS


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def switches(pid: int) -> int:
    """Context switches so far, of all threads that still run."""
    found = 0
    for process in tree(pid):
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):
                lines = (task / "status").read_text().splitlines()
                found += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return found


def open_files(pid: int) -> int:
    return sum(len(os.listdir(f"/proc/{process}/fd")) for process in tree(pid))
