# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Sign-in with Google (https://developers.google.com/identity/openid-connect/openid-connect)."""

from pydantic import Field, SecretStr, field_validator

from app.chassis.oauth import provider, settings
from app.chassis.oauth.provider import Claims, Identity, Provider
from app.chassis.settings import CoreSettings

CONSUMER_DOMAINS = ("@gmail.com", "@googlemail.com")


class GoogleSettings(CoreSettings):
    """The service's OAuth client at Google."""

    google_client_id: str = Field(
        default="", description="The OAuth client at Google; required in production"
    )
    google_client_secret: SecretStr = Field(
        default=SecretStr(""), description="The OAuth client's secret; required in production"
    )
    google_issuer: str = Field(
        default="https://accounts.google.com",
        description="Who signs people in with Google; another address for a provider of your own",
    )

    google_client_is_given = field_validator("google_client_id", "google_client_secret")(
        settings.required
    )
    google_issuer_is_an_address = field_validator("google_issuer")(settings.issuer)


class Google(Provider):
    name = "google"
    title = "Google"

    @classmethod
    def of(cls, known: GoogleSettings) -> "Google":
        return cls(known.google_issuer, known.google_client_id, known.google_client_secret)

    def signs_as(self, described: str, _: Claims) -> tuple[str, ...]:
        """Return Google's name with the scheme and without it, as Google documents both."""
        return (described, described.removeprefix("https://"))

    def identify(self, described: str, claims: Claims) -> Identity:
        """Return the identity, and whether the domain's owner answers for its address.

        An account may have an address of any domain. Google verifies it once, and the account
        keeps it. So the domain's owner answers only for accounts that a Google Workspace manages.
        These have the claim `hd`. Google itself answers for CONSUMER_DOMAINS.
        """
        email = provider.email(claims) if claims.get("email_verified") is True else None
        managed = bool(claims.get("hd")) or (email or "").endswith(CONSUMER_DOMAINS)
        return Identity(provider.subject(claims), email, managed, provider.name(claims))
