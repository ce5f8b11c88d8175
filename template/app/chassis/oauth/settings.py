# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Settings of the sign-in, and the validators that the providers' settings share."""

import re
from typing import Final, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from app.chassis import proxies
from app.chassis.settings import CoreSettings, StringList, as_origin, is_production

DOMAIN: Final = r"([a-z0-9_-]+\.)+[a-z0-9-]{2,}"
# Providers give out only these characters before the @, so no wildcard and no "mailto:" fits
ENTRY_FORM: Final = re.compile(r"([a-z0-9!#$%&'+/=?^_`{|}~.-]+@|@)?" + DOMAIN)

Credential = TypeVar("Credential", str, SecretStr)


class OAuthSettings(CoreSettings):
    """Settings of who may sign in, and of how long that lasts."""

    allowed_emails: StringList = Field(
        default=(),
        description="Addresses and domains that may sign in, with commas between; all unless set",
    )
    # A person who has lost the account at the provider stays signed in for this time
    session_max_age: int = Field(
        default=7 * 24 * 3600, gt=0, description="Seconds for which somebody stays signed in"
    )

    @field_validator("backend_url")
    @classmethod
    def people_can_come_back(cls, value: str, info: ValidationInfo) -> str:
        if is_production(info) and not value.startswith("https://"):
            problem = "must begin with https://" if value else "is not known"
            raise ValueError(
                f"{problem}, and people come back to it when they have signed in; "
                "create a domain with `railway domain`, or set it to https://..."
            )
        return value

    @field_validator("allowed_emails", mode="before")
    @classmethod
    def split_emails(cls, value: object) -> object:
        return cls.split_list(value)

    @field_validator("allowed_emails")
    @classmethod
    def emails_are_addresses_or_domains(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        entries = tuple(entry.lower() for entry in value)
        if not all(ENTRY_FORM.fullmatch(entry) for entry in entries):
            raise ValueError(
                "must list addresses or domains, without wildcards: ann@example.com, @example.com"
            )
        return tuple(entry if "@" in entry else f"@{entry}" for entry in entries)

    def refusals(self) -> list[str]:
        """Add the proxies with which no provider could be asked, if there is one to ask."""
        clients = [name for name in type(self).model_fields if name.endswith("_client_id")]
        asked = any(getattr(self, name) for name in clients)
        return super().refusals() + (proxies.refusals("httpx2") if asked else [])

    def admits(self, email: str | None, *, whole_domain: bool = True) -> bool:
        """Return whether somebody may use the service.

        Args:
            email: The address that the provider has verified, if any.
            whole_domain: True if the entry of a domain counts for the address.
        """
        if not self.allowed_emails:
            return True
        if email is None:
            return False
        domain = email[email.index("@") :]
        return email in self.allowed_emails or (whole_domain and domain in self.allowed_emails)


def required(value: Credential, info: ValidationInfo) -> Credential:
    """Return a client's id or secret, or refuse one that is missing.

    In production both are required. Elsewhere the secret is required if there is an id.
    """
    given = value.get_secret_value() if isinstance(value, SecretStr) else value
    assert info.field_name is not None
    provider = info.field_name.partition("_")[0]
    if not given and is_production(info):
        raise ValueError(
            "is required in production, because people sign in with it; "
            "set it to the client's (README.md, Sign-in)"
        )
    if not given and info.data.get(f"{provider}_client_id"):
        raise ValueError(f"is required with {provider.upper()}_CLIENT_ID; set it to the client's")
    return value


def issuer(value: str, info: ValidationInfo) -> str:
    """Return the address of a provider, below which it describes itself."""
    value = value.rstrip("/")
    parts = urlsplit(value)
    if not as_origin(f"{parts.scheme}://{parts.netloc}") or not re.fullmatch(r"[!-~]+", value):
        raise ValueError("must be an address, such as https://accounts.google.com")
    if parts.query or parts.fragment:
        raise ValueError("must be an address without ? and #")
    if is_production(info) and parts.scheme != "https":
        raise ValueError("must begin with https:// in production")
    return value
