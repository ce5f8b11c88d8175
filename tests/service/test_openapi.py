"""The OpenAPI document says what the service does: Schemathesis asks for all that it describes."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from support import tool
from support.service import Service, free_port
from test_sign_in import wait_for

SCHEMATHESIS = "schemathesis>=4.32,<5"

CASES = 10
"""Generated requests for each operation and kind of test; some 500 in all."""

AUTH = '[auth.openapi.session]\napi_key = "{cookie}"\n'
"""Schemathesis's configuration for somebody who has signed in: without it, and with a wrong one,
it expects 401 (https://schemathesis.readthedocs.io/en/stable/guides/auth/)."""

SECONDS = 900.0

ENDLESS = "/notes/stream"
"""A stream that goes on for as long as the client listens."""

VARIABLES = {"PAGE_ENABLED": "false", "MAX_THREADS_PER_PERSON": "1000000", "LOG_LEVEL": "WARNING"}


def conforms(service: Service, *options: str) -> None:
    """Assert that no answer contradicts the document, and none is an error of the server."""
    done = subprocess.run(
        [
            *(tool("uv"), "run", "--no-project", "--isolated", "--with", SCHEMATHESIS),
            *("schemathesis", "run", f"{service.url}/openapi.json", "--checks", "all"),
            *("--max-examples", str(CASES), "--seed", "1", "--no-color", "--continue-on-failure"),
            *("--suppress-health-check", "too_slow"),
            *("--request-timeout", "30", "--exclude-path", ENDLESS, *options),
        ],
        cwd=service.log.parent,
        env={name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=SECONDS,
    )
    print(done.stdout[-20_000:])
    assert done.returncode == 0
    (generated,) = re.findall(r"(\d+) generated", done.stdout)
    assert int(generated) > 100, "it has hardly asked anything"


@contextmanager
def somebody(project: Path, data: Path) -> Iterator[tuple[Service, str]]:
    """The service, and the cookie of somebody who has signed in."""
    issuer = f"http://localhost:{free_port()}"
    client = {"GOOGLE_ISSUER": issuer, "GOOGLE_CLIENT_ID": "mine", "GOOGLE_CLIENT_SECRET": "mine"}
    command = [project / ".venv/bin/oidc-provider-mock", "--port", issuer.rpartition(":")[2]]
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as provider,
        Service(project, data, **client, **VARIABLES) as service,
    ):
        try:
            service.wait_until_healthy()
            wait_for(f"{issuer}/.well-known/openid-configuration")
            with httpx.Client(base_url=f"http://localhost:{service.port}") as browser:
                away = browser.get("/auth/google/login").headers["Location"]
                back = httpx.post(away, data={"sub": "1"}).headers["Location"]
                browser.get(back)
                yield service, browser.cookies["session"]
        finally:
            provider.terminate()


@pytest.mark.long
@pytest.mark.parametrize("features", ["[]", "[conversations]"])
def test_the_document_is_right_without_sign_in(
    installed: Callable[..., Path], tmp_path: Path, features: str
) -> None:
    project = installed(features=features)
    with Service(project, tmp_path, **VARIABLES).wait_until_healthy() as service:
        conforms(service)


@pytest.mark.long
def test_the_document_is_right_with_sign_in(installed: Callable[..., Path], tmp_path: Path) -> None:
    project = installed(features="[conversations, oauth]", oauth_providers="[google]")
    with somebody(project, tmp_path) as (service, cookie):
        conforms(service)
        (tmp_path / "schemathesis.toml").write_text(AUTH.format(cookie=cookie))
        # to sign out ends what the other requests need
        conforms(service, "-H", f"Origin: {service.url}", "--exclude-path", "/auth/logout")


DOCUMENT = "import json; from app.main import create_app; print(json.dumps(create_app().openapi()))"


@pytest.mark.long
def test_the_document_names_errors_streams_and_the_sign_in(installed: Callable[..., Path]) -> None:
    project = installed(features="[conversations, oauth]", oauth_providers="[google]")
    printed = subprocess.check_output(
        [project / ".venv/bin/python", "-c", DOCUMENT], cwd=project, encoding="utf-8"
    )
    document = json.loads(printed.splitlines()[-1])
    paths = document["paths"]

    assert set(paths["/notes/{note_id}"]["get"]["responses"]) == {
        *("200", "400", "401", "404", "422", "503")
    }
    chat = paths["/threads/{thread_id}/chat"]["post"]
    errors = {"400", "401", "403", "404", "409", "413", "422", "429", "503"}
    assert set(chat["responses"]) == {"200", *errors}
    for status in errors:
        (content,) = chat["responses"][status]["content"].values()
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
    for path in ("/threads/{thread_id}/messages/{message_id}/stream", ENDLESS):
        assert list(paths[path]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]
    cookie = {"type": "apiKey", "in": "cookie", "name": "session"}
    assert document["components"]["securitySchemes"] == {"session": cookie}
    guarded = {path for path in paths for one in paths[path].values() if "security" in one}
    assert guarded == {
        path for path in paths if path.startswith(("/notes", "/threads", "/auth/me"))
    }
    assert "ValidationError" not in document["components"]["schemas"]
    parameters = [one.get("parameters") for path in paths.values() for one in path.values()]
    assert "null" not in str(parameters)
