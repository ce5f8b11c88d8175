"""The restore that every rendered RUNBOOK.md asks its reader to practise, as it stands there."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import tool

pytestmark = pytest.mark.long

SET = "DATABASE_URL|PORT|PG[A-Z]+|(LITESTREAM|MICROSOFT)_[A-Z_]+"
"""Variables that the drill sets, and takes away again."""

LIMIT = 300.0
"""Seconds; the runbook says five minutes."""


def drill(project: Path) -> str:
    """The commands under "Practise it"."""
    runbook = (project / "RUNBOOK.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"### Practise it\n.*?```sh\n(.*?)```", runbook, re.DOTALL)
    return commands


@pytest.mark.parametrize(
    "answers",
    [
        {"backup": "railway"},
        {"backup": "litestream"},
        pytest.param(
            {"database": "postgresql"},
            marks=pytest.mark.skipif(
                os.geteuid() == 0, reason="its server needs a project that another user may enter"
            ),
        ),
        {"backup": "railway", "features": "[oauth]", "oauth_providers": "[microsoft]"},
    ],
    ids=["railway", "litestream", "postgresql", "oauth"],
)
def test_the_runbooks_drill_brings_the_note_back(
    installed: Callable[..., Path],
    record_property: Callable[[str, object], None],
    answers: dict[str, str],
) -> None:
    project = installed(**answers)
    assert not Path("/tmp/drill").exists(), "an earlier drill was left in the middle"
    environment = {**os.environ, "PATH": f"{Path(tool('uv')).parent}:{os.environ['PATH']}"}
    for name in ("VIRTUAL_ENV", "DATABASE_URL", "PORT"):
        environment.pop(name, None)
    started = time.monotonic()

    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{drill(project)}\nenv | grep -E '^({SET})=' || true",
        ],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=LIMIT,
    )

    record_property("seconds", f"{time.monotonic() - started:.0f}")
    print(done.stdout)
    # what the last request gets; curl and the service's log may share a line
    (text,) = re.findall(r'\[\{"id":1,"text":"(.*?)"', done.stdout)
    assert text == "worth keeping"
    assert done.returncode == 0
    # the reader's shell goes on with its own database
    assert not re.search(f"^({SET})=", done.stdout, re.MULTILINE)
    assert not Path("/tmp/drill").exists()
