"""The page at `/`: where it is served, and what it may do there."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient

from app.chassis.page import PageSettings
from app.main import create_app
from app.settings import Settings

from .databases import make_database

PRODUCTION = {
    "ENVIRONMENT": "Production",
    "SECRET_KEY": "3f786850e387550fdab836ed7e6dc881de23001b",
    "VOLUME_PATH": "/data",
}
RAILWAY = {
    "RAILWAY_ENVIRONMENT_ID": "e1",
    "RAILWAY_VOLUME_MOUNT_PATH": "/data",
    "SECRET_KEY": PRODUCTION["SECRET_KEY"],
}


class Elements(HTMLParser):
    """The attributes of every element, and the text of those that the policy names."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, _: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.texts:
            self.texts[self._inside][-1] += data


def caller(settings: Settings, **changes: Any) -> TestClient:
    make_database(settings)
    return TestClient(create_app(settings.model_copy(update=changes)))


def policies(answer: httpx.Response) -> list[dict[str, str]]:
    """Each policy of an answer: its directives, and what they say."""
    headers = answer.headers.get_list("Content-Security-Policy")
    split = [[part.strip().partition(" ") for part in header.split(";")] for header in headers]
    return [{name: value for name, _, value in parts} for parts in split]


@pytest.mark.parametrize(
    ("variables", "enabled"),
    [
        ({}, True),
        ({"PAGE_ENABLED": "false"}, False),
        (PRODUCTION, False),
        (PRODUCTION | {"PAGE_ENABLED": "true"}, True),
        (RAILWAY, False),
        (RAILWAY | {"PAGE_ENABLED": ""}, False),
        (RAILWAY | {"PAGE_ENABLED": "true"}, True),
        (RAILWAY | {"ENVIRONMENT": "Development"}, True),
    ],
)
def test_it_is_for_development(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], enabled: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert PageSettings.load(_env_file=None).page_enabled is enabled


def test_development_shows_it(settings: Settings) -> None:
    answer = caller(settings).get("/")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.text.startswith("<!doctype html>")
    assert "/" not in caller(settings).get("/openapi.json").json()["paths"]


def test_without_it_there_is_nothing(settings: Settings) -> None:
    answer = caller(settings, page_enabled=False).get("/")

    assert answer.status_code == 404
    assert answer.json()["detail"] == "Not Found"


def test_the_policy_admits_its_own_script_and_style(settings: Settings) -> None:
    production = caller(settings, environment="production", docs_enabled=False, page_enabled=True)
    answer = production.get("/")
    (policy,) = policies(answer)

    texts = Elements(answer.text).texts
    for name, directive in (("script", "script-src"), ("style", "style-src")):
        (text,) = texts[name]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert text.strip()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == policy["form-action"] == "'self'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_every_other_answer_keeps_the_strict_policy(settings: Settings) -> None:
    production = caller(settings, environment="production", docs_enabled=False, page_enabled=True)

    for path in ("/health", "/nowhere"):
        assert policies(production.get(path)) == [
            {"default-src": "'none'", "frame-ancestors": "'none'"}
        ]


def test_it_brings_all_that_it_needs(settings: Settings) -> None:
    html = caller(settings).get("/").text

    assert "://" not in html
    for tag, name, value in Elements(html).attributes:
        assert name not in {"action", "src", "srcset", "style"}, (tag, name)
        assert not name.startswith("on"), (tag, name)
        assert name != "href" or re.match(r"#|/[^/]|data:", value), (tag, value)
    # a text that people have written becomes no markup
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", html)
