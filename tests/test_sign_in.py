"""The sign-in that a rendered README has its reader try, as it stands there."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx

from service import DEADLINE, Service, free_port
from support import tool


def test_the_readmes_reader_can_sign_in(installed: Callable[..., Path], tmp_path: Path) -> None:
    project = installed(features="[oauth]", oauth_providers="[google, microsoft]")
    readme = (project / "README.md").read_text(encoding="utf-8")
    pattern = (
        r"\*\*Try it\*\*.*?```sh\n(.*?)\n```.*?<http://localhost:8000(.*?)>.*?```sh\n(.*?)\n```"
    )
    ((command, page, commands),) = re.findall(pattern, readme, re.DOTALL)
    issuer = f"http://localhost:{free_port()}"
    assert "http://localhost:9400" in commands
    exported = re.findall(r"(\w+)=(\S+)", commands.replace("http://localhost:9400", issuer))

    with (
        subprocess.Popen(
            ["bash", "-c", f"exec {command} --port {issuer.rpartition(':')[2]}"],
            cwd=project,
            env={**os.environ, "PATH": f"{Path(tool('uv')).parent}:{os.environ['PATH']}"},
            stderr=subprocess.DEVNULL,
        ) as provider,
        # whoever comes back may meet another worker than the one that has sent them away
        Service(project, tmp_path, WORKERS="2", PAGE_ENABLED="false", **dict(exported)) as service,
    ):
        try:
            service.wait_until_healthy()
            wait_for(f"{issuer}/.well-known/openid-configuration")
            with httpx.Client(base_url=f"http://localhost:{service.port}") as browser:
                away = browser.get(page)
                back = httpx.post(away.headers["Location"], data={"sub": "1"})
                signed_in = browser.get(back.headers["Location"], follow_redirects=True)
        finally:
            provider.terminate()

    assert signed_in.json() == {
        "id": 1,
        "provider": "google",
        "email": "ann@example.com",
        "name": "Ann",
    }
    assert "User 1 has signed in with Google" in service.output()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.05)
