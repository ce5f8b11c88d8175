"""Microsoft's many tenants, and what the address of an account is worth."""

from typing import Any

import pytest
from pydantic import SecretStr

from app.chassis.oauth.microsoft import PLACEHOLDER, Microsoft, MicrosoftSettings

from .conftest import Browser, Log, OpenBrowser
from .provider import Provider

HOST = "https://login.microsoftonline.com"
OURS = "72f988bf-86f1-41af-91ab-2d7cd011db47"
THEIRS = "9188040d-6c67-4c5b-b112-36a304b66dad"
MANY = f"{HOST}/{PLACEHOLDER}/v2.0"
ACCOUNT: dict[str, Any] = {"email": "ann@example.com", "email_verified": True}


def asked(tenant: str) -> Microsoft:
    return Microsoft(f"{HOST}/{tenant}/v2.0", "client", SecretStr("secret"))


def test_its_issuer() -> None:
    microsoft = Microsoft.of(MicrosoftSettings.model_construct())

    assert microsoft.discovery == f"{HOST}/common/v2.0/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("tenant", "described", "accepted"),
    [
        ("common", MANY, True),
        ("organizations", MANY, True),
        ("consumers", f"{HOST}/{THEIRS}/v2.0", True),
        ("example.onmicrosoft.com", f"{HOST}/{OURS}/v2.0", True),
        (OURS, f"{HOST}/{OURS}/v2.0", True),
        (OURS, f"{HOST}/{THEIRS}/v2.0", False),
        (OURS, MANY, False),
        ("common", f"https://evil.example/{PLACEHOLDER}/v2.0", False),
        ("common", f"{HOST}.evil.example/{OURS}/v2.0", False),
        ("common", f"{HOST}/{OURS}/v1.0", False),
        ("common", f"{HOST}/a/b/v2.0", False),
    ],
)
def test_how_it_describes_itself(tenant: str, described: str, accepted: bool) -> None:
    assert asked(tenant).describes_itself_as(described) == accepted


@pytest.mark.parametrize(
    ("described", "claims", "issuers"),
    [
        (MANY, {"tid": OURS}, (f"{HOST}/{OURS}/v2.0",)),
        (MANY, {"tid": "common"}, ()),
        (MANY, {"tid": f"{OURS}/../{THEIRS}"}, ()),
        (MANY, {}, ()),
        (f"{HOST}/{OURS}/v2.0", {"tid": THEIRS}, (f"{HOST}/{OURS}/v2.0",)),
    ],
)
def test_a_token_is_signed_as_its_own_tenant(
    described: str, claims: dict[str, Any], issuers: tuple[str, ...]
) -> None:
    assert asked("common").signs_as(described, claims) == issuers


@pytest.mark.parametrize(
    ("described", "claims", "email"),
    [
        (f"{HOST}/{OURS}/v2.0", {}, "ann@example.com"),
        (MANY, {}, None),
        (MANY, {"email_verified": True}, None),
        (MANY, {"xms_edov": False}, None),
        (MANY, {"xms_edov": "0"}, None),
        (MANY, {"xms_edov": True}, "ann@example.com"),
        (MANY, {"xms_edov": "1"}, "ann@example.com"),
    ],
)
def test_another_tenants_word_on_an_address_is_worth_nothing(
    described: str, claims: dict[str, Any], email: str | None
) -> None:
    known = {"sub": "1", "tid": OURS, "email": "ann@example.com", "name": "Ann", **claims}

    assert asked("common").identify(described, known) == (f"{OURS}/1", email, True, "Ann")


@pytest.fixture
def browser(open_browser: OpenBrowser, provider: Provider) -> Browser:
    """Everybody of every tenant may sign in, if the address is on the list."""
    provider.description = {"issuer": f"{provider.url}/{PLACEHOLDER}/v2.0"}
    return open_browser(
        microsoft_issuer=f"{provider.url}/common/v2.0", allowed_emails=("ann@example.com",)
    )


def of_tenant(browser: Browser, tenant: str) -> dict[str, str]:
    return {"tid": tenant, "iss": f"{browser.provider.url}/{tenant}/v2.0"}


def test_an_account_of_any_tenant(browser: Browser) -> None:
    address: dict[str, Any] = {"email": "ann@example.com", "xms_edov": True}

    for tenant in (OURS, THEIRS):
        done = browser.sign_in("microsoft", **of_tenant(browser, tenant), **address)
        assert done.status_code == 303

    assert [user.subject for user in browser.users()] == [f"{OURS}/ann", f"{THEIRS}/ann"]


def test_an_address_that_its_tenant_has_made_up(browser: Browser) -> None:
    refused = browser.sign_in("microsoft", **of_tenant(browser, THEIRS), **ACCOUNT)

    assert refused.status_code == 403


@pytest.mark.parametrize("claims", [{"tid": THEIRS}, {"tid": None}, {"iss": HOST}])
def test_a_token_of_another_tenant_than_it_says(
    browser: Browser, log: Log, claims: dict[str, Any]
) -> None:
    token = of_tenant(browser, OURS) | claims

    assert browser.sign_in("microsoft", **token).status_code == 502
    assert "'iss'" in log.lines[-1]


def test_one_tenant_only(open_browser: OpenBrowser, provider: Provider) -> None:
    issuer = f"{provider.url}/{OURS}/v2.0"
    provider.description = {"issuer": issuer}
    browser = open_browser(microsoft_issuer=issuer, allowed_emails=("@example.com",))

    assert browser.sign_in("microsoft", **of_tenant(browser, THEIRS), **ACCOUNT).status_code == 502
    assert browser.sign_in("microsoft", **of_tenant(browser, OURS), **ACCOUNT).status_code == 303
