# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""A program that becomes Litestream, and leaves a process that takes its lines at once.

Litestream writes its log itself, and stops working, and even stopping, when nobody reads it. What
it says goes through a pipe that is always read; what nobody takes from there in time is dropped,
and told. It runs before anything of the service is imported, to be small: `python -I -S relay.py`.
"""

import os
import queue
import signal
import sys
import threading
from typing import Final

VARIABLE: Final = "SERVICE_STDOUT"
"""Tells the server, which Litestream starts, which descriptor is the service's own stdout."""

LINES: Final = 1000
"""Lines that may wait."""

EXIT_TIMEOUT: Final = 2.0
"""Seconds for the last of them."""

DROPPED: Final = b"%d lines of Litestream's were dropped\n"


def main(command: list[str]) -> None:
    """Become the command."""
    reader, writer = os.pipe()
    stdout = os.dup(1)
    if os.fork() == 0:
        # twice, so that it is no child of Litestream's, which would leave it a zombie
        if os.fork() == 0:
            # the database's lock among them, which is not for this process to hold
            os.closerange(3, reader)
            os.closerange(reader + 1, 1024)
            copy(reader)
        os._exit(0)
    os.wait()
    os.dup2(writer, 1)
    # The reading end stays open here too: a write must not fail if the other process is killed.
    for descriptor in (reader, stdout):
        os.set_inheritable(descriptor, True)
    os.environ[VARIABLE] = str(stdout)
    os.execv(command[0], command)


def copy(reader: int) -> None:
    """Copy lines to stdout until all who write them have ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    lines: queue.Queue[bytes] = queue.Queue(LINES)
    writer = threading.Thread(target=write, args=(lines,), daemon=True)
    writer.start()
    dropped = 0
    with os.fdopen(reader, "rb") as file:
        for line in file:
            if dropped and not lines.full():
                lines.put_nowait(DROPPED % dropped)
                dropped = 0
            try:
                lines.put_nowait(line)
            except queue.Full:
                dropped += 1
    try:
        if dropped:
            lines.put(DROPPED % dropped, timeout=EXIT_TIMEOUT)
        lines.put(b"", timeout=EXIT_TIMEOUT)
    except queue.Full:
        return
    writer.join(EXIT_TIMEOUT)


def write(lines: "queue.Queue[bytes]") -> None:
    while line := lines.get():
        try:
            os.write(1, line)
        except OSError:
            continue  # a closed pipe or a full disk


if __name__ == "__main__":
    main(sys.argv[1:])
