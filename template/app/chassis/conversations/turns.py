# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Protocol of the providers that write answers."""

import re
from collections.abc import AsyncGenerator, Sequence
from typing import Final, Literal, NamedTuple, Protocol

Role = Literal["user", "assistant"]

Status = Literal["complete", "interrupted"]


VISIBLE: Final = (
    r"[^\s\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
"""Pattern of a visible character, which Python and OpenAPI (ECMA-262) can both read.

Such a character is neither white space nor a control or format one, such as a zero-width space.
"""


class Turn(NamedTuple):
    """Message of a conversation, as a provider gets it."""

    role: Role
    text: str


def is_blank(text: str) -> bool:
    """Return whether a text has nothing to see. Models refuse a message of spaces alone."""
    return not re.search(VISIBLE, text)


class Provider(Protocol):
    """Provider of answers."""

    def stream(self, turns: Sequence[Turn]) -> AsyncGenerator[str, None]:
        """Yield the answer to the last turn, in pieces as they come.

        The generator is closed, or cancelled where it waits, when nobody wants the rest.

        Args:
            turns: The messages, the oldest first, by turns the person's and the provider's. None
                of them is blank. The first and the last are the person's.

        Raises:
            ProviderError: There is no answer, or no more of it.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections, because the service stops."""
        ...


class ProviderError(Exception):
    """Error of a provider that gives no answer, or no more of it.

    The person sees the message, so it names no internals.
    """
