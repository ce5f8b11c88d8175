"""The provider that needs no model."""

import asyncio
import time

import pytest

from app.chassis.conversations import echo
from app.chassis.conversations.turns import Turn


async def answer(text: str) -> list[str]:
    turns = [Turn("user", "before"), Turn("assistant", "before"), Turn("user", text)]
    return [piece async for piece in echo.EchoProvider().stream(turns)]


@pytest.mark.parametrize("text", ["Hi", "  two\n words ", "Grüße 👋 an alle"])
def test_it_gives_every_character_back(text: str) -> None:
    pieces = asyncio.run(answer(text))

    assert "".join(pieces) == text
    assert len(pieces) == len(text.split())


def test_a_long_text_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "LONGEST", 0.2)
    started = time.monotonic()

    asyncio.run(answer("word " * 1000))

    assert time.monotonic() - started < 10
