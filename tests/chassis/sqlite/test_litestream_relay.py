"""The process that takes Litestream's lines, whoever reads them."""

import os
import subprocess
import sys
from contextlib import suppress
from typing import Final

from app.chassis.litestream import relay

LINES: Final = 5000

TALK: Final = f"""
import os
os.write(int(os.environ["{relay.VARIABLE}"]), b"the server's own\\n")
for number in range({LINES}):
    print(number, flush=True)
"""


def start(output: int, talk: str = TALK) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-I", "-S", relay.__file__, sys.executable, "-c", talk]
    return subprocess.Popen(command, stdout=output)


def test_lines_come_in_order_and_whole() -> None:
    reader, writer = os.pipe()
    process = start(writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        lines = file.read().splitlines()
    assert process.wait(30) == 0
    lines.remove("the server's own")
    numbers, dropped = sort(lines)
    assert numbers == sorted(numbers)
    assert len(numbers) + dropped == LINES


def sort(lines: list[str]) -> tuple[list[int], int]:
    """Return the numbers that came, and how many are said to have been dropped."""
    told = [line for line in lines if line.endswith("were dropped")]
    return [int(line) for line in lines if line not in told], sum(
        int(line.split()[0]) for line in told
    )


def test_who_does_not_read_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n" * 4096)
    os.set_blocking(writer, True)
    process = start(writer, f"for number in range({LINES}): print(number, flush=True)")
    assert process.wait(30) == 0
    os.close(writer)
    with os.fdopen(reader) as file:
        numbers, dropped = sort([line for line in file.read().splitlines() if line])
    assert dropped
    assert len(numbers) + dropped == LINES
