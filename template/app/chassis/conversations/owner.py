# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Dependency that returns the owner of the threads that a request may see."""

from pkgutil import resolve_name
from typing import Annotated

from fastapi import Depends

from app.chassis import answers


async def nobody() -> None:
    """Return None, because nobody signs in and the threads are everybody's."""


owner = resolve_name(answers.THREAD_OWNER)
Owner = Annotated[int | None, Depends(owner)]
"""Owner of the threads, who is the person that is signed in, or None without sign-in."""
