"""How long somebody is signed in, and what a cookie is worth."""

import json
import re
import time
from base64 import b64decode, b64encode
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, WebSocket
from itsdangerous import TimestampSigner
from pydantic import SecretStr
from starlette.testclient import WebSocketDenialResponse

from app.chassis.oauth.session import CurrentUser, OptionalUser, cookie_key, current_user_id
from app.main import create_app
from app.settings import Settings

from .conftest import NAMES, Browser, OpenBrowser

KEY = "b7ad4f8e0c1d4e2f9a3b5c6d7e8f9012"


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


def test_a_cookie_says_no_more_than_who_and_since_when(browser: Browser) -> None:
    browser.sign_in(email="ann@example.com", email_verified=True, name="Ann")

    content = json.loads(b64decode(browser.cookie.split(".")[0]))

    assert content.keys() == {"user"}
    assert content["user"].keys() == {"id", "epoch", "since"}


@pytest.mark.parametrize("production", [False, True])
def test_only_the_browser_has_the_cookie(open_browser: OpenBrowser, production: bool) -> None:
    browser = open_browser(
        environment="production" if production else "development",
        backend_url="https://api.example.com" if production else "http://localhost:8000",
    )

    cookie = browser.sign_in().headers["Set-Cookie"]

    name, _, rest = cookie.partition("=")
    attributes = {part.strip().lower() for part in rest.split(";")[1:]}
    assert name == ("__Host-session" if production else "session")
    expected = {"path=/", "max-age=604800", "httponly", "samesite=lax"}
    assert attributes == expected | ({"secure"} if production else set())
    assert browser.whoami() == 1


def test_a_session_ends_by_itself(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    browser.sign_in()
    kept = browser.cookie
    later(monkeypatch, 604800 - 60)
    browser.cookie = kept
    assert browser.whoami() == 1

    # makes the cookie anew, and with it the cookie's own age
    browser.leave()
    assert browser.whoami() == 1
    assert browser.cookie != kept
    renewed = browser.cookie

    later(monkeypatch, 120)
    for cookie in (kept, renewed):
        browser.cookie = cookie
        assert browser.whoami() is None


def signed(content: object, key: str) -> str:
    return TimestampSigner(key).sign(b64encode(json.dumps(content).encode())).decode()


def test_a_cookie_has_to_be_of_this_service(open_browser: OpenBrowser, settings: Settings) -> None:
    browser = open_browser()
    browser.sign_in()
    good = browser.cookie
    content, stamp, signature = good.split(".")
    forged = json.loads(b64decode(content))
    forged["user"]["id"] = 2
    secret = settings.secret_key.get_secret_value()
    bad = [
        "",
        "null",
        content,
        f"{content}.{stamp}.{signature[::-1]}",
        f"{b64encode(json.dumps(forged).encode()).decode()}.{stamp}.{signature}",
        signed(forged, "another key"),
        # what else the service may sign with the same secret is no session
        signed(json.loads(b64decode(content)), secret),
    ]

    for cookie in bad:
        browser.cookie = cookie
        assert browser.whoami() is None, cookie
    browser.cookie = signed(json.loads(b64decode(content)), cookie_key(settings))
    assert browser.whoami() == 1


def test_another_secret_key_ends_every_session(open_browser: OpenBrowser) -> None:
    before = open_browser()
    before.sign_in()

    after = open_browser(secret_key=SecretStr(KEY))
    after.cookie = before.cookie

    assert after.whoami() is None


def test_signing_out_is_for_good_and_everywhere(open_browser: OpenBrowser) -> None:
    app = create_app(open_browser().settings)
    laptop, phone, other = (open_browser(app) for _ in range(3))
    laptop.sign_in()
    phone.sign_in()
    other.sign_in(subject="bob")
    copied = laptop.cookie

    laptop.sign_out()

    assert "session" not in laptop.cookies
    assert laptop.whoami() is None
    assert phone.whoami() is None
    assert other.whoami() == 2
    laptop.cookie = copied
    assert laptop.whoami() is None

    # nor can a cookie that is signed out sign out who has come back
    phone.sign_in()
    phone.sign_out()
    phone.sign_in()
    laptop.sign_out()
    assert phone.whoami() == 1


def test_nobody_can_sign_out_too(browser: Browser) -> None:
    browser.sign_out()


def test_a_user_who_is_deleted_is_out_and_nobody_gets_the_cookie(browser: Browser) -> None:
    browser.sign_in()
    kept = browser.cookie
    with browser.server.state.database.write() as session:
        session.delete(session.merge(browser.users()[0]))
    assert browser.whoami() is None

    browser.cookies.clear()
    browser.sign_in(subject="bob")

    assert browser.whoami() == 2
    browser.cookie = kept
    assert browser.whoami() is None


def test_who_is_taken_off_the_list_is_out_with_the_next_start(open_browser: OpenBrowser) -> None:
    before = open_browser(allowed_emails=("ann@example.com",))
    before.sign_in(email="ann@example.com", email_verified=True)
    assert before.whoami() == 1

    after = open_browser(allowed_emails=("bob@example.com",))
    after.cookie = before.cookie

    assert after.whoami() is None


def add_routes(app: FastAPI) -> FastAPI:
    @app.get("/mine")
    def mine(user: CurrentUser) -> str:
        return f"{user.provider}:{user.subject}"

    @app.get("/id")
    async def number(user_id: Annotated[int, Depends(current_user_id)]) -> int:
        return user_id

    @app.get("/greeting")
    def greeting(user: OptionalUser) -> str:
        return "somebody" if user else "nobody"

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, user: CurrentUser) -> None:
        await websocket.accept()
        await websocket.send_json(user.id)
        await websocket.close()

    return app


def test_routes_ask_for_users(open_browser: OpenBrowser, settings: Settings) -> None:
    browser = open_browser(add_routes(create_app(settings)))

    for path in ("/mine", "/id", "/auth/me"):
        refused = browser.get(path)
        assert refused.status_code == 401
        assert refused.json()["detail"] == "You are not signed in"
    assert browser.get("/greeting").json() == "nobody"
    with (
        pytest.raises(WebSocketDenialResponse) as refused_socket,
        browser.websocket_connect("/socket"),
    ):
        pass
    assert refused_socket.value.status_code == 401

    browser.sign_in()

    assert browser.get("/mine").json() == f"{NAMES[0]}:ann"
    assert browser.get("/id").json() == 1
    assert browser.get("/greeting").json() == "somebody"
    headers = {"Cookie": f"session={browser.cookie}", "Origin": settings.backend_url}
    with browser.websocket_connect("/socket", headers=headers) as connection:
        assert connection.receive_json() == 1


def test_who_has_not_signed_in_waits_for_nothing(
    open_browser: OpenBrowser, settings: Settings
) -> None:
    """Whatever the routes of the service need, they ask first who it is."""
    app = create_app(settings)
    browser = open_browser(app)
    paths = app.openapi()["paths"]
    asking = [
        (method, path)
        for path, methods in paths.items()
        for method in methods
        if path.startswith(("/auth/me", "/threads"))
    ]
    with app.state.database.write() as session:
        session.connection()
        started = time.monotonic()
        for method, path in asking:
            address = re.sub("{.*?}", "1", path)
            answer = browser.request(method, address, json={"title": "mine", "text": "Hi"})
            assert answer.status_code == 401, (method, path)
        browser.sign_out()
        assert time.monotonic() - started < 5  # as long as a writer waits for its turn
        session.rollback()


def test_answers_for_a_user_are_kept_for_nobody_else(browser: Browser) -> None:
    browser.sign_in()

    assert "Cookie" in browser.get("/auth/me").headers["Vary"]
