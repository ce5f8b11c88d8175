# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Provider without a model, which repeats the person's words one after the other."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from app.chassis.conversations.turns import Turn

PAUSE: Final = 0.05
"""Seconds between two words, so that people see the answer stream."""

LONGEST: Final = 10.0
"""Maximum number of seconds that a whole answer takes."""


class EchoProvider:
    """Provider that repeats the last message."""

    async def stream(self, turns: Sequence[Turn]) -> AsyncGenerator[str, None]:
        words = re.findall(r"\s*\S+\s*", turns[-1].text)
        pause = min(PAUSE, LONGEST / len(words))
        for word in words:
            yield word
            await asyncio.sleep(pause)

    async def aclose(self) -> None:
        """Do nothing, because nothing is open."""
