# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""What a provider of answers is asked, and how it says that it cannot answer."""

import re
from collections.abc import AsyncGenerator, Sequence
from typing import Final, Literal, NamedTuple, Protocol

Role = Literal["user", "assistant"]

Status = Literal["complete", "interrupted"]


VISIBLE: Final = (
    r"[^\s\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
"""A character that is neither white space nor a control or format one, such as a zero-width space,
as a pattern that Python and OpenAPI (ECMA-262) both read."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: Role
    text: str


def is_blank(text: str) -> bool:
    """Return whether a text has nothing to see: models refuse a message of spaces alone."""
    return not re.search(VISIBLE, text)


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
