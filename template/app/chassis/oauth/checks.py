# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks of the sign-in, for `python -m app check`.

They tell what the providers have to know, and who may sign in.
"""

from collections.abc import Iterable, Iterator

from app.chassis.checks.finding import Finding, ok, skipped, warning
from app.chassis.oauth.provider import Provider
from app.chassis.oauth.settings import OAuthSettings


def check(settings: OAuthSettings, providers: Iterable[Provider]) -> Iterator[Finding]:
    """Yield the findings about the providers and the people who may sign in."""
    for provider in providers:
        name = f"sign-in.{provider.name}"
        if provider.offered:
            uri = provider.redirect_uri(settings.backend_url)
            yield ok(name, f"{uri} has to be among the client's redirect URIs")
        else:
            yield skipped(name, f"{provider.name.upper()}_CLIENT_ID is not set")
    name = "sign-in.admitted"
    verdict = ", ".join(settings.allowed_emails) or "everyone who has an account there"
    if settings.production and not settings.allowed_emails:
        yield warning(name, verdict, "list who may sign in in ALLOWED_EMAILS, if not everyone may")
    else:
        yield ok(name, verdict)
