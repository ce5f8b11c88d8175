# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""OpenID Connect client of Authlib, with the checks that Authlib leaves to others."""

import ssl
import time
from collections.abc import MutableMapping
from functools import cache
from typing import Any, Final

import httpx2
from authlib.integrations.starlette_client import StarletteIntegration, StarletteOAuth2App
from fastapi import Request

from app.chassis.oauth.provider import Identity, Provider, UntrustworthyError

TIMEOUT: Final = 10.0
"""Seconds that a provider has to answer."""

STATE_LIFETIME: Final = 600
"""Seconds that somebody may take to sign in at the provider."""

DESCRIPTION_LIFETIME: Final = 3600
"""Seconds that a provider's keys and addresses are used. It may withdraw one of them."""

CLOCK_TOLERANCE: Final = 120
"""Seconds by which the provider's clock may differ from this one."""

Session = MutableMapping[str, Any]


class States(StarletteIntegration):  # type: ignore[misc]  # the package has no types
    """Data of a sign-in under way, kept in the session for each provider."""

    expires_in = STATE_LIFETIME

    async def set_state_data(self, session: Session, state: str, data: dict[str, Any]) -> None:
        # The URL is not needed again, and a cookie has room for 4096 bytes
        del data["url"]
        await super().set_state_data(session, state, data)

    async def get_state_data(self, session: Session, state: str) -> dict[str, Any] | None:
        """Return the data, unless it is too old. The base class does not look at its age."""
        kept = session.get(f"_state_{self.name}_{state}")
        if not kept or kept["exp"] < time.time():
            return None
        data: dict[str, Any] = kept["data"]
        return data


@cache
def http_options() -> dict[str, Any]:
    """Return the options of every client.

    They are cached, because loading the certificates takes longer than a request.
    """
    context: ssl.SSLContext = httpx2.create_ssl_context()
    return {"timeout": TIMEOUT, "verify": context}


class Client(StarletteOAuth2App):  # type: ignore[misc]  # the package has no types
    """Client of a provider, which uses the authorization code with PKCE, state and nonce."""

    def __init__(self, provider: Provider) -> None:
        super().__init__(
            States(provider.name),
            provider.name,
            client_id=provider.client_id,
            client_secret=provider.client_secret.get_secret_value(),
            client_kwargs={
                "scope": "openid email profile",
                "code_challenge_method": "S256",
                "token_endpoint_auth_method": "client_secret_post",
                **http_options(),
            },
        )
        self.provider = provider
        self.server_metadata: dict[str, Any] = {}
        self._described_at = 0.0

    async def load_server_metadata(self) -> dict[str, Any]:
        """Return the provider's description of itself, to which Authlib adds the keys later.

        Raises:
            UntrustworthyError: The description is of another issuer.
        """
        if time.monotonic() < self._described_at + DESCRIPTION_LIFETIME and self.server_metadata:
            return self.server_metadata
        async with httpx2.AsyncClient(**http_options()) as http:
            found = (await http.get(self.provider.discovery)).raise_for_status().json()
        if not self.provider.describes_itself_as(found["issuer"]):
            raise UntrustworthyError(
                f"{self.provider.discovery} describes the issuer {found['issuer']!r}"
            )
        names = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
        self.server_metadata = {name: found[name] for name in names} | {
            # The provider's own list is ignored, because it can hold "none", and every provider
            # has to know RS256
            "id_token_signing_alg_values_supported": ["RS256"]
        }
        self._described_at = time.monotonic()
        return self.server_metadata

    async def expects(self, request: Request) -> bool:
        """Return whether the request belongs to a sign-in that this browser has begun."""
        state = request.query_params.get("state")
        return await self.framework.get_state_data(request.session, state) is not None

    async def forget(self, request: Request) -> None:
        await self.framework.clear_state_data(request.session, request.query_params.get("state"))

    async def identify(self, request: Request) -> Identity:
        """Exchange the code for an ID token, check the token, and return the identity in it.

        Raises:
            authlib.integrations.base_client.OAuthError: The provider refuses the code.
            joserfc.errors.JoseError: The token is not signed by the provider, not for this
                service, not for this sign-in, or out of date.
            UntrustworthyError: There is no token, or it does not say enough.
        """
        described = (await self.load_server_metadata())["issuer"]
        token = await self.authorize_access_token(
            request,
            leeway=CLOCK_TOLERANCE,
            claims_options={
                "iss": {
                    "essential": True,
                    "validate": lambda claims, value: (
                        value in self.provider.signs_as(described, claims)
                    ),
                },
                "aud": {"essential": True, "value": self.client_id},
            },
        )
        # Without an ID token, Authlib returns the other tokens as if nothing were missing
        if "userinfo" not in token:
            raise UntrustworthyError("there is no ID token")
        return self.provider.identify(described, token["userinfo"])
