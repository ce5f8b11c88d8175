"""A load with wrk, and what it has seen."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runs import MissingTool

SCRIPT = Path(__file__).with_name("load.lua")
CONNECTIONS = 32

EDGE = {
    "Host": "localhost",
    "X-Real-IP": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "api.example.com",
    "X-Railway-Request-Id": "aXe3kG0fTqSdeT5rnOlpCA",
}
"""What a platform's edge adds to every request."""


@dataclass(frozen=True)
class Load:
    """Milliseconds, seconds and numbers."""

    requests: int
    seconds: float
    p50: float
    p99: float
    refused: int
    """Answers from 400 on."""
    broken: int
    """Connections that failed, and requests without an answer."""
    increments: int = 0
    repeated: int = 0
    """Increments whose value another one had already been answered with."""
    inserted: int = 0
    """Inserts of the script's `table` that were answered well."""

    @property
    def rate(self) -> float:
        """Requests a second that were answered well."""
        return (self.requests - self.refused) / self.seconds

    @property
    def fault(self) -> str:
        """Why this is no measurement, if it is none."""
        counts = {"answers from 400 on": self.refused, "without an answer": self.broken}
        if not self.requests:
            return "no request was answered"
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def wrk() -> str:
    if found := shutil.which("wrk"):
        return found
    raise MissingTool("wrk, the load generator, is missing; install it: apt-get install wrk")


def press(url: str, seconds: int, *script: str, connections: int = CONNECTIONS) -> Load:
    """As many requests as the connections can make one after the other.

    Args:
        url: Where; with a script only the host counts.
        seconds: How long.
        script: Arguments for load.lua.
        connections: How many.
    """
    command = [wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    for name, value in EDGE.items():
        command += ["-H", f"{name}: {value}"]
    command += ["-s", str(SCRIPT), url, "--", *script]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    try:
        return Load(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        raise RuntimeError(f"wrk failed: {done.stdout}{done.stderr}") from None
