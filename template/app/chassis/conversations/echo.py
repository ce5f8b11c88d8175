# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""A provider without a model: the person's own words, one after the other."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from app.chassis.conversations.turns import Turn

PAUSE: Final = 0.05
"""Seconds between two words, so that an answer can be seen to stream."""

LONGEST: Final = 10.0
"""Seconds that a whole answer takes at most."""


class EchoProvider:
    """Repeats the last message."""

    async def stream(self, turns: Sequence[Turn]) -> AsyncGenerator[str, None]:
        words = re.findall(r"\s*\S+\s*", turns[-1].text)
        pause = min(PAUSE, LONGEST / len(words))
        for word in words:
            yield word
            await asyncio.sleep(pause)

    async def aclose(self) -> None:
        """Nothing is open."""
