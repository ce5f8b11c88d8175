# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""What the service knows of a provider of accounts, whichever it is."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import SecretStr

ADDRESS_FORM: Final = re.compile(r"[!-?A-~]+@[!-?A-~]+")
"""ASCII only: among other letters are some that become another one in lower case."""

MAX_ADDRESS: Final = 254
MAX_NAME: Final = 200
MAX_SUBJECT: Final = 255
"""Of a subject's length OpenID Connect says so itself (Core 1.0, section 2)."""

Claims = Mapping[str, Any]


class UntrustworthyError(Exception):
    """What a provider has sent is not what it has to be; the message may be logged."""


class Identity(NamedTuple):
    """Who has signed in, in the provider's words.

    Args:
        subject: Which account, for good; addresses and names change hands.
        email: Its address, if the provider has verified it.
        whole_domain: Whether whoever owns the address's domain has given it to them.
        name: For people to read.
    """

    subject: str
    email: str | None
    whole_domain: bool
    name: str | None


class Provider(ABC):
    """A provider, and this service's client there."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, issuer: str, client_id: str, client_secret: SecretStr) -> None:
        self.issuer = issuer
        self.client_id = client_id
        self.client_secret = client_secret

    @property
    def offered(self) -> bool:
        """Whether there is a client; in development there may be none."""
        return bool(self.client_id)

    @property
    def discovery(self) -> str:
        """Where the provider describes itself."""
        return f"{self.issuer}/.well-known/openid-configuration"

    def redirect_uri(self, backend_url: str) -> str:
        """Where it sends people back to; it has to know that beforehand."""
        return f"{backend_url}/auth/{self.name}/callback"

    def describes_itself_as(self, found: str) -> bool:
        """Whether the issuer that its description names is the one that was asked."""
        return found == self.issuer

    def signs_as(self, described: str, _: Claims) -> tuple[str, ...]:
        """The issuers that an ID token with these claims may name.

        Args:
            described: The issuer in the provider's description.
        """
        return (described,)

    @abstractmethod
    def identify(self, described: str, claims: Claims) -> Identity:
        """Who the claims of a checked ID token speak of.

        Raises:
            UntrustworthyError: They do not say.
        """


def subject(claims: Claims) -> str:
    value = claims.get("sub")
    if not isinstance(value, str) or not value.isascii() or not 0 < len(value) <= MAX_SUBJECT:
        raise UntrustworthyError("its subject is none")
    return value


def email(claims: Claims) -> str | None:
    value = claims.get("email")
    if not isinstance(value, str) or len(value) > MAX_ADDRESS or not ADDRESS_FORM.fullmatch(value):
        return None
    return value.lower()


def name(claims: Claims) -> str | None:
    """One line of text that a database can keep."""
    value = claims.get("name")
    if not isinstance(value, str):
        return None
    text = value.encode("utf-8", "ignore").decode()
    return " ".join(text.split())[:MAX_NAME] or None
