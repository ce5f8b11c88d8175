"""What a rendered RUNBOOK.md says of the sign-in, done as it stands there."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest

from support import tool
from support.service import DEADLINE, Service, free_port, router_added

ANSWERS = {"features": "[oauth]", "oauth_providers": "[google, microsoft]"}


@pytest.mark.long
def test_the_runbooks_reader_can_sign_in(installed: Callable[..., Path], tmp_path: Path) -> None:
    project = installed(**ANSWERS)
    runbook = (project / "RUNBOOK.md").read_text(encoding="utf-8")
    pattern = (
        r"\*\*Try it\*\*.*?```sh\n(.*?)\n```.*?<http://localhost:8000(.*?)>.*?```sh\n(.*?)\n```"
    )
    ((command, page, commands),) = re.findall(pattern, runbook, re.DOTALL)
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
                own = {"Origin": f"http://localhost:{service.port}"}
                kept = browser.post("/notes", json={"text": "mine"}, headers=own)
            for path in ("/notes", "/notes/1", "/notes/stream"):
                assert service.client.get(path).status_code == 401
            assert service.client.post("/notes", json={"text": "anybody's"}).status_code == 401
            service.wait_for("User 1 has signed in with Google")
        finally:
            provider.terminate()

    assert kept.status_code == 201
    assert signed_in.json() == {
        "id": 1,
        "provider": "google",
        "email": "ann@example.com",
        "name": "Ann",
    }


MODEL = """

class Thing(Base):
    __tablename__ = "things"

    id: Mapped[int] = mapped_column(primary_key=True)
    {owner}
"""

ROUTES = """
from fastapi import APIRouter
from sqlalchemy import select

from app.chassis.database import Reader, Writer
{imported}
from app.models import Thing

router = APIRouter(prefix="/things")


@router.post("", status_code=201)
def create(user: CurrentUser, session: Writer) -> None:
    session.add(Thing(owner_id=user.id))


@router.get("/mine")
def mine(user: CurrentUser, session: Reader) -> list[int]:
    return list(session.scalars(select(Thing.id).where(Thing.owner_id == user.id)))
"""


@pytest.mark.long
def test_a_table_of_ones_own_refers_to_users(
    installed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = installed(**ANSWERS)
    runbook = (project / "RUNBOOK.md").read_text(encoding="utf-8")
    (owner,) = re.findall(r"refers to its owner with `(.*?)`", runbook)
    (imported,) = re.findall(
        r"^from app\.chassis\.oauth.* import CurrentUser$", runbook, re.MULTILINE
    )
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    models = project / "app" / "models.py"
    before = models.read_text(encoding="utf-8")
    versions = project / "migrations" / "versions"
    known = set(versions.iterdir())

    def run(*command: str) -> None:
        done = subprocess.run(
            [tool("uv"), "run", "--locked", *command],
            cwd=project,
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run("python", "-m", "app", "migrate")
        after = before.replace("Integer, MetaData", "ForeignKey, Integer, MetaData")
        models.write_text(after + MODEL.format(owner=owner), encoding="utf-8")
        run("alembic", "revision", "--autogenerate", "-m", "add things")
        (revision,) = set(versions.glob("*.py")) - known
        assert "users" in revision.read_text(encoding="utf-8")
        with (
            router_added(project, "mine", ROUTES.format(imported=imported)),
            Service(project, tmp_path, PAGE_ENABLED="false").wait_until_healthy() as service,
        ):
            assert service.client.post("/things").status_code == 401
            assert service.client.get("/things/mine").status_code == 401
            run("ruff", "check", "app", "migrations")
            run("mypy")
            run("alembic", "check")
    finally:
        models.write_text(before, encoding="utf-8")
        for new in set(versions.glob("*.py")) - known:
            new.unlink()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.05)
