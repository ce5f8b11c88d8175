# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Program that becomes Litestream, and leaves a process that takes its lines at once.

Litestream writes its log itself. When nobody reads the log, Litestream stops working, and cannot
even stop. So its lines go through a pipe that is always read. Lines that nobody takes from there
in time are dropped, and another line tells their number. The program runs as
`python -I -S relay.py`, before anything of the service is imported, so that it stays small.
"""

import os
import queue
import signal
import sys
import threading
from typing import Final

VARIABLE: Final = "SERVICE_STDOUT"
"""Variable that tells the server which descriptor is the service's stdout.

Litestream starts the server and passes the variable on.
"""

LINES: Final = 1000
"""Maximum number of lines that wait."""

EXIT_TIMEOUT: Final = 2.0
"""Seconds that each step with the last lines may take."""

DROPPED: Final = b"%d lines of Litestream's were dropped\n"


def main(command: list[str]) -> None:
    """Start the process that copies lines, and become the command."""
    reader, writer = os.pipe()
    stdout = os.dup(1)
    if os.fork() == 0:
        # The second fork makes it no child of Litestream's, which would leave it a zombie
        if os.fork() == 0:
            # The database's lock is among them, and this process must not hold it
            os.closerange(3, reader)
            os.closerange(reader + 1, 1024)
            copy(reader)
        os._exit(0)
    os.wait()
    os.dup2(writer, 1)
    # The reading end stays open here, so that no write fails if the other process is killed
    for descriptor in (reader, stdout):
        os.set_inheritable(descriptor, True)
    os.environ[VARIABLE] = str(stdout)
    os.execv(command[0], command)


def copy(reader: int) -> None:
    """Copy lines to stdout until all processes that write them have ended."""
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
            continue  # A closed pipe or a full disk does not end the copying


if __name__ == "__main__":
    main(sys.argv[1:])
