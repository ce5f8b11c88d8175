# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""What a provider of answers is asked, and how it says that it cannot answer."""

import unicodedata
from collections.abc import AsyncGenerator, Sequence
from typing import Literal, NamedTuple, Protocol

Role = Literal["user", "assistant"]

Status = Literal["complete", "interrupted"]


class Turn(NamedTuple):
    """One message of a conversation."""

    role: Role
    text: str


def is_blank(text: str) -> bool:
    """Return whether a text has nothing to see: models refuse a message of spaces alone."""
    # Control and format characters, such as the zero-width space, are no white space to Python.
    return all(one.isspace() or unicodedata.category(one) in {"Cc", "Cf"} for one in text)


class Provider(Protocol):
    """Whoever writes the answers."""

    def stream(self, turns: Sequence[Turn]) -> AsyncGenerator[str, None]:
        """The answer to the last turn, in pieces as they come.

        The generator is closed, or cancelled where it waits, when nobody wants the rest.

        Args:
            turns: The conversation, oldest first: by turns the person's and the provider's, and
                none of them blank. The first and the last are the person's.

        Raises:
            ProviderError: There is no answer, or no more of it.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections; the service stops."""
        ...


class ProviderError(Exception):
    """No answer, or no more of it; the message is shown to the person, and names no internals."""
