"""A PostgreSQL server with so many databases, run by a rendered project's Python.

`python served.py NUMBER` tells their addresses in a line of JSON, and ends with SIGTERM. It keeps
what it has committed, as in production, and has its data where temporary files are.
"""

import json
import signal
import sys
from contextlib import suppress

from app.chassis.postgresql.local import Server

DURABLE = ("fsync=on", "synchronous_commit=on", "full_page_writes=on", "max_connections=200")

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Server(None, None, *DURABLE) as server:
        urls = [server.new_database() for _ in range(int(sys.argv[1]))]
        print(json.dumps(urls), flush=True)
        with suppress(KeyboardInterrupt):
            server.wait()
