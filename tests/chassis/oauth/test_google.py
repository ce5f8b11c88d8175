"""What Google says of an account, and what that is worth."""

from typing import Any

import pytest

from app.chassis.oauth.google import Google, GoogleSettings

from .conftest import OpenBrowser

GOOGLE = Google.of(GoogleSettings.model_construct())


def test_its_issuer() -> None:
    assert GOOGLE.discovery == "https://accounts.google.com/.well-known/openid-configuration"
    assert GOOGLE.describes_itself_as("https://accounts.google.com")
    assert not GOOGLE.describes_itself_as("https://evil.example")
    expected = ("https://accounts.google.com", "accounts.google.com")
    assert GOOGLE.signs_as("https://accounts.google.com", {}) == expected


@pytest.mark.parametrize(
    ("claims", "email", "whole_domain"),
    [
        ({"email_verified": True}, "ann@example.com", False),
        ({"email_verified": True, "hd": "example.com"}, "ann@example.com", True),
        ({"email_verified": True, "email": "ann@gmail.com"}, "ann@gmail.com", True),
        ({"email_verified": False}, None, False),
        ({"email_verified": "true"}, None, False),
        ({"email_verified": 1}, None, False),
        ({}, None, False),
    ],
)
def test_which_addresses_count(
    claims: dict[str, Any], email: str | None, whole_domain: bool
) -> None:
    known = {"sub": "1", "email": "ann@example.com", "name": "Ann", **claims}

    identity = GOOGLE.identify("https://accounts.google.com", known)

    assert identity == ("1", email, whole_domain, "Ann")


def test_who_has_left_an_organisation_keeps_no_access_by_its_domain(
    open_browser: OpenBrowser,
) -> None:
    browser = open_browser(allowed_emails=("@example.com",))
    account: dict[str, Any] = {"email": "ann@example.com", "email_verified": True}

    assert browser.sign_in("google", **account).status_code == 403
    assert browser.sign_in("google", **account, hd="example.com").status_code == 303


def test_an_address_that_is_not_verified_is_not_kept(open_browser: OpenBrowser) -> None:
    browser = open_browser()

    browser.sign_in("google", email="ann@example.com")

    assert browser.users()[0].email is None
