"""A page of somebody else cannot use the session."""

import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import WebSocketDenialResponse

from app.main import create_app
from app.settings import Settings

from .conftest import Browser, OpenBrowser

BACKEND = "https://api.example.com"
CHANGES = {
    "allowed_hosts": ("*",),
    "backend_url": BACKEND,
    "cors_origins": ("https://app.example.com", "https://App.Example.com:8443"),
    "environment": "production",
}

GOOD = [
    BACKEND,
    "https://app.example.com",
    "https://app.example.com:8443",
]
BAD = [
    None,
    "",
    "null",
    "*",
    "http://api.example.com",
    "https://api.example.com:8443",
    "https://api.example.com.evil.example",
    "https://evil.example",
    "https://evil.example#https://api.example.com",
    "https://app.example.com https://evil.example",
    "https://sub.app.example.com",
]


def headers(origin: str | None) -> dict[str, str]:
    return {} if origin is None else {"Origin": origin}


@pytest.fixture
def signed_in(open_browser: OpenBrowser) -> Browser:
    browser = open_browser(**CHANGES)
    browser.sign_in()
    return browser


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "MADE-UP"])
def test_who_may_change_something(signed_in: Browser, method: str) -> None:
    for origin in BAD:
        refused = signed_in.request(method, "/auth/me", headers=headers(origin))
        assert refused.status_code == 403, origin
        assert refused.json()["detail"].startswith("This page may not do that")
        assert refused.headers["X-Request-ID"]
    for origin in GOOD:
        # the request has come as far as the routes
        assert signed_in.request(method, "/auth/me", headers=headers(origin)).status_code == 405
    assert signed_in.whoami() == 1


def test_without_the_cookie_anybody_may_ask(open_browser: OpenBrowser) -> None:
    browser = open_browser(**CHANGES)
    browser.cookies.set("other", "__Host-session=x")

    for origin in (*GOOD, *BAD):
        assert browser.put("/auth/me", headers=headers(origin)).status_code == 405


def test_reading_changes_nothing(signed_in: Browser) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "TRACE"):
        answer = signed_in.request(method, "/health/live", headers=headers("https://evil.example"))
        assert answer.status_code in {200, 405}, method


def test_the_host_that_was_asked_is_the_services_own(signed_in: Browser) -> None:
    cookie = {"Cookie": f"__Host-session={signed_in.cookie}"}

    def ask(scheme: str, host: str, origin: str) -> int:
        signed_in.base_url = f"{scheme}://api.example.com"
        sent = cookie | {"Host": host, "Origin": origin}
        return signed_in.put("/auth/me", headers=sent).status_code

    assert ask("http", "10.0.0.7:8000", "http://10.0.0.7:8000") == 405
    assert ask("https", "other.example", "https://other.example") == 405
    # a proxy has taken the encryption off
    assert ask("http", "other.example", "https://other.example") == 405
    assert ask("https", "other.example", "http://other.example") == 403
    assert ask("http", "10.0.0.7:8000", "http://10.0.0.7:8001") == 403
    assert ask("http", "", "http://") == 400


def test_any_origin_is_not_any_origin_with_a_session(open_browser: OpenBrowser) -> None:
    browser = open_browser(cors_origins=("*",))
    browser.sign_in()

    for origin in ("https://evil.example", "*"):
        assert browser.put("/auth/me", headers=headers(origin)).status_code == 403


def test_a_listed_page_can_read_why_it_was_refused(signed_in: Browser) -> None:
    answer = signed_in.put("/auth/me", headers=headers("https://app.example.com"))

    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"


def with_socket(app: FastAPI) -> FastAPI:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    return app


def test_a_websocket_is_a_request_that_may_change_something(
    open_browser: OpenBrowser, settings: Settings
) -> None:
    browser = open_browser(with_socket(create_app(settings.model_copy(update=CHANGES))))
    with browser.websocket_connect("/socket") as connection:  # a program
        assert connection.receive_text() == "hello"
    browser.sign_in()
    cookie = {"Cookie": f"__Host-session={browser.cookie}"}

    for origin in GOOD:
        with browser.websocket_connect("/socket", headers=headers(origin) | cookie) as connection:
            assert connection.receive_text() == "hello"
    for bad in BAD:
        with (
            pytest.raises(WebSocketDenialResponse) as refused,
            browser.websocket_connect("/socket", headers=headers(bad) | cookie),
        ):
            pass
        assert refused.value.status_code == 403
