"""To the provider and back, and everything that may be wrong with what comes back."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import Request, Response
from joserfc.jwk import OctKey, RSAKey
from starlette.middleware.base import RequestResponseEndpoint

from app.chassis.oauth import client, routes
from app.chassis.oauth.routes import safe_path
from app.main import create_app
from app.settings import Settings

from .conftest import NAMES, Browser, Log, OpenBrowser

FIRST = NAMES[0]


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(browser: Browser, name: str) -> None:
    assert browser.get("/auth/me").status_code == 401
    away = browser.get(f"/auth/{name}/login", params={"next": "/here?is=it"})
    asked = parse_qs(urlsplit(away.headers["Location"]).query)
    assert asked["client_id"] == [f"{name}-client"]
    assert asked["scope"] == ["openid email profile"]
    assert asked["code_challenge_method"] == ["S256"]
    assert {"state", "nonce"} <= asked.keys()

    browser.provider.claims = {"email": "Ann@Example.com", "email_verified": True, "name": "Ann"}
    back = browser.get(browser.agree(away.headers["Location"]))

    assert back.status_code == 303
    assert back.headers["Location"] == "/here?is=it"
    me = browser.get("/auth/me")
    assert me.json() == {"id": 1, "provider": name, "email": "ann@example.com", "name": "Ann"}
    assert [answer.headers["Cache-Control"] for answer in (away, back, me)] == ["no-store"] * 3


def test_middleware_of_the_service_has_nobodys_data_kept(
    open_browser: OpenBrowser, settings: Settings
) -> None:
    app = create_app(settings)

    @app.middleware("http")
    async def add_default(request: Request, call_next: RequestResponseEndpoint) -> Response:
        answer = await call_next(request)
        answer.headers.setdefault("Cache-Control", "public, max-age=60")
        return answer

    browser = open_browser(app)
    browser.sign_in(email="ann@example.com", email_verified=True, name="Ann")
    assert browser.get("/auth/me").headers["Cache-Control"] == "no-store"


def test_an_account_is_stored_once(browser: Browser) -> None:
    browser.sign_in(email="ann@old.example", email_verified=True, name="Ann")
    (before,) = browser.users()

    browser.sign_in(email="ann@new.example", email_verified=True, name=" Ann\nLee ")

    (after,) = browser.users()
    assert (after.id, after.subject) == (before.id, before.subject) == (1, "ann")
    assert (after.email, after.name) == ("ann@new.example", "Ann Lee")
    assert after.created_at == before.created_at < after.last_login_at
    assert before.last_login_at - before.created_at < timedelta(seconds=1)


def test_another_account_is_another_user(browser: Browser) -> None:
    accounts = [(name, subject) for name in NAMES for subject in ("ann", "bob")]

    ids = []
    for name, subject in accounts:
        browser.sign_in(name, subject=subject)
        ids.append(browser.whoami())

    assert ids == [1, 2, 3, 4][: len(accounts)]
    assert [(user.provider, user.subject) for user in browser.users()] == accounts


def test_the_redirect_uri_is_made_of_backend_url(open_browser: OpenBrowser) -> None:
    browser = open_browser(backend_url="https://api.example.com")
    browser.base_url = "http://elsewhere.example"

    asked = parse_qs(urlsplit(browser.leave()).query)

    assert asked["redirect_uri"] == [f"https://api.example.com/auth/{FIRST}/callback"]


def test_a_provider_without_a_client_is_not_offered(open_browser: OpenBrowser) -> None:
    browser = open_browser(**{f"{FIRST}_client_id": ""})

    refused = browser.get(f"/auth/{FIRST}/login")

    assert refused.status_code == 503
    assert f"{FIRST.upper()}_CLIENT_ID is not set" in refused.json()["detail"]
    assert browser.get("/auth/nobody/login").status_code == 404
    assert browser.get("/auth/nobody/callback").status_code == 404


GOOD = ["/", "/a/b?c=d&e=%2F%0A#f", "/caf%C3%A9", "/a//b", "/@x", "/:1"]
BAD = [
    "",
    "a",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\/evil.example",
    "https:evil.example",
    "https://evil.example",
    "javascript:alert(1)",
    "/\t/evil.example",
    "/\n/evil.example",
    " //evil.example",
    "/%2F/evil.example",
    "/%2fevil.example",
    "/%5Cevil.example",
    "/%09/evil.example",
    "/a%0d%0aSet-Cookie:b=c",
    "/\N{FULLWIDTH SOLIDUS}evil.example",
    "/" + "x" * 2000,
]


@pytest.mark.parametrize(("page", "expected"), [(g, g) for g in GOOD] + [(b, "/") for b in BAD])
def test_nobody_is_sent_to_another_host(page: str, expected: str) -> None:
    assert safe_path(page) == expected


@pytest.mark.parametrize("page", ["//evil.example", "https://evil.example", "/\\evil.example"])
def test_a_login_leads_back_to_this_host(browser: Browser, page: str) -> None:
    assert browser.sign_in(page=page).headers["Location"] == "/"


Spoil = Callable[[Browser, str], str]


def without(name: str) -> Spoil:
    def spoil(_: Browser, back: str) -> str:
        path, query = back.split("?")
        return path + "?" + "&".join(p for p in query.split("&") if not p.startswith(f"{name}="))

    return spoil


def of_another_browser(browser: Browser, back: str) -> str:
    browser.cookies.clear()
    return back


def used(browser: Browser, back: str) -> str:
    assert browser.get(back).status_code == 303
    browser.sign_out()
    return back


def with_a_used_code(browser: Browser, back: str) -> str:
    assert browser.get(back).status_code == 303
    browser.sign_out()
    (state,) = parse_qs(urlsplit(browser.leave()).query)["state"]
    (code,) = parse_qs(urlsplit(back).query)["code"]
    return f"{back.partition('?')[0]}?code={code}&state={state}"


@pytest.mark.parametrize(
    "spoil",
    [
        without("state"),
        without("code"),
        lambda _, back: f"{back}x",
        of_another_browser,
        used,
        with_a_used_code,
        lambda _, back: f"{without('code')(_, back)}&error=access_denied",
        lambda _, back: f"{without('code')(_, back)}&error=<script>alert(1)</script>",
        lambda _, back: "/" + f"auth/{FIRST}/callback?error=<script>alert(1)</script>",
    ],
    ids=["no-state", "no-code", "wrong-state", "browser", "used", "code", "no", "text", "forged"],
)
def test_what_comes_back_has_to_be_expected(browser: Browser, spoil: Spoil) -> None:
    back = spoil(browser, browser.agree(browser.leave()))

    refused = browser.get(back)

    assert refused.status_code == 400
    assert refused.headers["Cache-Control"] == "no-store"
    assert refused.headers["Content-Type"] == "application/json"
    assert refused.json()["detail"].endswith(f"start again at /auth/{FIRST}/login")
    assert "script" not in refused.text
    assert browser.whoami() is None


@pytest.mark.skipif(len(NAMES) < 2, reason="there is no other provider")
def test_another_provider_cannot_answer(browser: Browser) -> None:
    back = browser.agree(browser.leave(NAMES[0]))

    assert browser.get(back.replace(NAMES[0], NAMES[1])).status_code == 400


def test_a_sign_in_that_was_refused_is_over(browser: Browser) -> None:
    back = browser.agree(browser.leave())
    browser.get(f"{without('code')(browser, back)}&error=access_denied")

    assert browser.get(back).status_code == 400


def test_a_sign_in_has_to_be_finished_in_time(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = browser.agree(browser.leave())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + client.STATE_LIFETIME + 1)

    assert browser.get(back).status_code == 400


def test_signing_in_takes_nothing_along(browser: Browser) -> None:
    """What somebody else has put into a browser before is gone."""
    browser.sign_in(subject="mallory")
    planted = browser.cookie

    browser.sign_in(subject="ann")

    assert browser.whoami() == 2
    assert browser.cookie != planted
    browser.cookie = planted
    assert browser.whoami() == 1


STRANGER = RSAKey.generate_key(2048, auto_kid=True)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": int(time.time()) - 3600}, "expired"),
        ({"exp": None}, "'exp'"),
        ({"iat": int(time.time()) + 3600}, "issued in the future"),
        ({"nonce": "of another sign-in"}, "'nonce'"),
        ({"nonce": None}, "'nonce'"),
        ({"aud": "another service"}, "'aud'"),
        ({"aud": "another service", "azp": f"{FIRST}-client"}, "'aud'"),
        ({"aud": ["another service", f"{FIRST}-client"]}, "'azp'"),
        ({"aud": None}, "aud"),
        ({"iss": "https://evil.example"}, "'iss'"),
        ({"iss": None}, "iss"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "subject"),
        ({"sub": 7}, "'sub'"),
        ({"sub": "x" * 256}, "subject"),
    ],
)
def test_an_id_token_has_to_be_for_this_sign_in(
    browser: Browser, log: Log, claims: dict[str, Any], reason: str
) -> None:
    assert reason in assert_untrusted(browser, log, **claims)


@pytest.mark.parametrize(
    ("header", "key", "reason"),
    [
        ({"alg": "RS256", "kid": STRANGER.kid}, STRANGER, "InvalidKeyIdError"),
        ({"alg": "RS256", "kid": "the provider's"}, STRANGER, "BadSignatureError"),
        ({"alg": "none"}, STRANGER, "UnsupportedAlgorithmError"),
        ({"alg": "HS256"}, OctKey.import_key("x" * 32), "UnsupportedAlgorithmError"),
        ({"alg": "PS256", "kid": "the provider's"}, None, "UnsupportedAlgorithmError"),
    ],
)
@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_an_id_token_has_to_be_signed_by_the_provider(
    browser: Browser, log: Log, header: dict[str, Any], key: Any, reason: str
) -> None:
    own = browser.provider.keys[0]
    if header.get("kid") == "the provider's":
        header = header | {"kid": own.kid}
    browser.provider.signing = header, key or own
    browser.provider.description = {
        "id_token_signing_alg_values_supported": ["RS256", "PS256", "HS256", "none"]
    }

    assert reason in assert_untrusted(browser, log)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"access_token": "a"}', "there is no ID token"),
        (b"{}", "there is no ID token"),
        (b'{"access_token": 1, "id_token": null}', "Error"),
        (b"[]", "Error"),
        (b"no JSON", "Error"),
    ],
)
def test_there_has_to_be_an_id_token(
    browser: Browser, log: Log, answer: bytes, reason: str
) -> None:
    browser.provider.answer("/oauth2/token", "200 OK", answer)

    assert reason in assert_untrusted(browser, log)


@pytest.mark.parametrize("keys", [b"{}", b'{"keys": []}', b'{"keys": [1]}', b"no JSON"])
def test_there_have_to_be_keys(browser: Browser, log: Log, keys: bytes) -> None:
    browser.provider.answer("/jwks", "200 OK", keys)

    assert_untrusted(browser, log)


def assert_untrusted(browser: Browser, log: Log, **claims: Any) -> str:
    refused = browser.sign_in(**claims)

    assert refused.status_code == 502
    assert "has sent what cannot be trusted" in refused.json()["detail"]
    line = only(log)
    assert "has sent what cannot be trusted" in line
    assert browser.users() == []
    assert browser.whoami() is None
    return line


def test_the_description_has_to_be_the_providers_own(browser: Browser, log: Log) -> None:
    browser.provider.description = {"issuer": "https://evil.example"}

    assert browser.get(f"/auth/{FIRST}/login").status_code == 502
    assert "describes the issuer 'https://evil.example'" in only(log)


def test_keys_may_change(browser: Browser) -> None:
    browser.sign_in()
    provider = browser.provider
    former = provider.keys[0]
    provider.keys = [RSAKey.generate_key(2048, auto_kid=True)]

    assert browser.sign_in(subject="bob").status_code == 303

    provider.requests.clear()
    assert browser.sign_in(subject="bob").status_code == 303
    assert "/jwks" not in provider.requests
    provider.signing = {"alg": "RS256", "kid": former.kid}, former
    assert browser.sign_in(subject="eve").status_code == 502


def test_a_key_that_the_provider_has_withdrawn_ends(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.sign_in()
    provider = browser.provider
    former = provider.keys[0]
    provider.signing = {"alg": "RS256", "kid": former.kid}, former
    provider.keys = [RSAKey.generate_key(2048, auto_kid=True)]
    assert browser.sign_in(subject="bob").status_code == 303

    monkeypatch.setattr(client, "DESCRIPTION_LIFETIME", 0)

    assert browser.sign_in(subject="eve").status_code == 502


def test_a_provider_that_is_not_there(open_browser: OpenBrowser, log: Log) -> None:
    browser = open_browser(**{f"{FIRST}_issuer": "http://127.0.0.1:1"})

    assert_out_of_order(browser, f"/auth/{FIRST}/login", log)


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/oauth2/token", "/jwks"])
@pytest.mark.parametrize("fault", ["500 Internal Server Error", "404 Not Found", "slow"])
def test_a_provider_that_is_out_of_order(
    browser: Browser,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fault: str,
) -> None:
    def too_late() -> tuple[str, bytes]:
        time.sleep(0.5)
        return "200 OK", b"{}"

    first = path.startswith("/.well-known")
    address = f"/auth/{FIRST}/login" if first else browser.agree(browser.leave())
    if fault == "slow":
        monkeypatch.setattr(routes, "TIMEOUT", 0.1)
        browser.provider.answers[path] = too_late
    else:
        browser.provider.answer(path, fault, b"<html>password=hunter2</html>")

    line = assert_out_of_order(browser, address, log)
    assert ("does not answer" if fault == "slow" else fault[:3]) in line


def test_a_provider_that_refuses_the_client(browser: Browser, log: Log) -> None:
    answer = {"error": "invalid_client", "error_description": "hunter2"}
    browser.provider.answer("/oauth2/token", "401 Unauthorized", json.dumps(answer).encode())
    address = browser.agree(browser.leave())

    assert "invalid_client" in assert_out_of_order(browser, address, log)


def assert_out_of_order(browser: Browser, address: str, log: Log) -> str:
    refused = browser.get(address)

    assert refused.status_code == 502
    assert refused.headers["Cache-Control"] == "no-store"
    line = only(log)
    assert "hunter2" not in refused.text + line
    assert browser.whoami() is None
    return line


def only(log: Log) -> str:
    (line,) = log.lines
    return line


def test_logs_tell_who_comes_and_goes_and_no_secret(
    open_browser: OpenBrowser, capsys: pytest.CaptureFixture[str]
) -> None:
    browser = open_browser(log_level="DEBUG")
    browser.sign_in(email="ann@example.com", email_verified=True, name="Ann Lee")
    secrets = {*browser.provider.secrets, browser.cookie, "ann@example.com", "Ann Lee"}
    browser.sign_out()

    output = capsys.readouterr().out
    assert output.count("User 1 has signed in with") == 1
    assert output.count("User 1 has signed out") == 1
    assert len(secrets) >= 8
    assert [secret for secret in secrets if secret in output] == []


def test_another_replica_takes_somebody_back(open_browser: OpenBrowser) -> None:
    """What a sign-in under way needs is in the cookie, and who has signed in is in the database."""
    one, other = open_browser(), open_browser()
    back = one.agree(one.leave(page="/threads"))

    other.cookie = one.cookie
    answer = other.get(back)

    assert (answer.status_code, answer.headers["Location"]) == (303, "/threads")
    one.cookie = other.cookie
    assert one.whoami() == other.whoami() == 1
    other.sign_out()
    assert one.whoami() is None


def test_two_replicas_take_one_person_back_at_once(open_browser: OpenBrowser) -> None:
    browsers = [open_browser() for _ in range(4)]
    backs = [browser.agree(browser.leave()) for browser in browsers]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one, back: one.get(back).status_code, browsers, backs))

    assert answers == [303] * 4
    (person,) = {browser.whoami() for browser in browsers}
    assert person is not None
