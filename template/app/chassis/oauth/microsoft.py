# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Sign-in with Microsoft.

See https://learn.microsoft.com/entra/identity-platform/v2-protocols-oidc.
"""

import re
from typing import Final

from pydantic import Field, SecretStr, field_validator

from app.chassis.oauth import provider, settings
from app.chassis.oauth.provider import Claims, Identity, Provider
from app.chassis.settings import CoreSettings

TENANT_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

PLACEHOLDER: Final = "{tenantid}"
"""Part of the issuer in Microsoft's description where accounts of many tenants sign in."""

DOMAIN_VERIFIED: Final = (True, "true", "1")
"""Values of the claim xms_edov with which an address's domain is the tenant's own."""


class MicrosoftSettings(CoreSettings):
    """The service's app registration at Microsoft."""

    microsoft_client_id: str = Field(
        default="", description="The app registration at Microsoft; required in production"
    )
    microsoft_client_secret: SecretStr = Field(
        default=SecretStr(""), description="The app registration's secret; required in production"
    )
    microsoft_issuer: str = Field(
        default="https://login.microsoftonline.com/common/v2.0",
        description="Who signs people in with Microsoft; a tenant's id in place of common for its "
        "accounts only",
    )

    microsoft_client_is_given = field_validator("microsoft_client_id", "microsoft_client_secret")(
        settings.required
    )
    microsoft_issuer_is_an_address = field_validator("microsoft_issuer")(settings.issuer)


class Microsoft(Provider):
    name = "microsoft"
    title = "Microsoft"

    @classmethod
    def of(cls, known: MicrosoftSettings) -> "Microsoft":
        return cls(known.microsoft_issuer, known.microsoft_client_id, known.microsoft_client_secret)

    def describes_itself_as(self, found: str) -> bool:
        """Return whether the issuer in the description is the one that was asked.

        The description of a tenant that is asked for by another name, such as common, has its id.
        """
        if found == self.issuer:
            return True
        host, _, tenant = self.issuer.removesuffix("/v2.0").rpartition("/")
        described = found.removeprefix(f"{host}/").removesuffix("/v2.0")
        return (
            found == f"{host}/{described}/v2.0"
            and not TENANT_ID.fullmatch(tenant)
            and (described == PLACEHOLDER or bool(TENANT_ID.fullmatch(described)))
        )

    def signs_as(self, described: str, claims: Claims) -> tuple[str, ...]:
        if PLACEHOLDER not in described:
            return (described,)
        tenant = tenant_id(claims)
        return (described.replace(PLACEHOLDER, tenant),) if tenant else ()

    def identify(self, described: str, claims: Claims) -> Identity:
        """Return the identity, with the address only if it can be trusted.

        Administrators of a tenant can give its accounts any address, even one of other people. So
        where many tenants sign in, an address counts only if Microsoft says that its domain is
        the tenant's own (https://learn.microsoft.com/entra/identity-platform/claims-validation).
        """
        verified = PLACEHOLDER not in described or claims.get("xms_edov") in DOMAIN_VERIFIED
        email = provider.email(claims) if verified else None
        # A subject is unique only within its tenant
        account = provider.subject(claims)
        if tenant := tenant_id(claims):
            account = f"{tenant}/{account}"
        return Identity(account, email, True, provider.name(claims))


def tenant_id(claims: Claims) -> str | None:
    value = claims.get("tid")
    return value if isinstance(value, str) and TENANT_ID.fullmatch(value) else None
