# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Base class of the providers of accounts, and the checks of their claims."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import SecretStr

ADDRESS_FORM: Final = re.compile(r"[!-?A-~]+@[!-?A-~]+")
"""Form of an address, in ASCII only. Some other letters become another one in lower case."""

MAX_ADDRESS: Final = 254
MAX_NAME: Final = 200
MAX_SUBJECT: Final = 255
"""Maximum length of a subject, as OpenID Connect sets it (Core 1.0, section 2)."""

Claims = Mapping[str, Any]


class UntrustworthyError(Exception):
    """Error for an answer of a provider that is not as it has to be. Its message may be logged."""


class Identity(NamedTuple):
    """Identity of the person who has signed in, in the provider's words.

    Args:
        subject: The permanent id of the account. Addresses and names change hands.
        email: The account's address, if the provider has verified it.
        whole_domain: True if the owner of the address's domain has given it to the person.
        name: The name, for people to read.
    """

    subject: str
    email: str | None
    whole_domain: bool
    name: str | None


class Provider(ABC):
    """Provider of accounts, and this service's client there."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, issuer: str, client_id: str, client_secret: SecretStr) -> None:
        self.issuer = issuer
        self.client_id = client_id
        self.client_secret = client_secret

    @property
    def offered(self) -> bool:
        """Return whether there is a client. In development there may be none."""
        return bool(self.client_id)

    @property
    def discovery(self) -> str:
        """Return the address at which the provider describes itself."""
        return f"{self.issuer}/.well-known/openid-configuration"

    def redirect_uri(self, backend_url: str) -> str:
        """Return the address to which it sends people back. It has to know that beforehand."""
        return f"{backend_url}/auth/{self.name}/callback"

    def describes_itself_as(self, found: str) -> bool:
        """Return whether the issuer in the description is the one that was asked."""
        return found == self.issuer

    def signs_as(self, described: str, _: Claims) -> tuple[str, ...]:
        """Return the issuers that a token with these claims may name, from the one described."""
        return (described,)

    @abstractmethod
    def identify(self, described: str, claims: Claims) -> Identity:
        """Return the identity in the claims of a checked ID token.

        Raises:
            UntrustworthyError: The claims do not name one.
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
    """Return the name as one line of text that a database can keep."""
    value = claims.get("name")
    if not isinstance(value, str):
        return None
    text = value.encode("utf-8", "ignore").decode()
    return " ".join(text.split())[:MAX_NAME] or None
