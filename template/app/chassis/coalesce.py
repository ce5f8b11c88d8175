# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Single flight, which is one run of a function for all who ask for it at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Coalesced(Generic[Result]):
    """Single flight of a function, which runs only once at a time.

    All callers get the result of a run that began after they asked.

    Args:
        function: The function to run. It has to end.
    """

    def __init__(self, function: Callable[[], Awaitable[Result]]) -> None:
        self.function = function
        self.next: asyncio.Future[Result] | None = None
        self.runs: asyncio.Task[None] | None = None

    async def __call__(self) -> Result:
        """Return the result of the next run, or raise its exception."""
        if self.next is None:
            self.next = asyncio.get_running_loop().create_future()
        mine = self.next
        if self.runs is None or self.runs.done():
            # The run belongs to no request, because the first caller may be gone before its end
            self.runs = asyncio.create_task(self.run(), context=Context())
        return await asyncio.shield(mine)

    async def run(self) -> None:
        """Run the function until nobody waits."""
        while (future := self.next) is not None:
            self.next = None
            try:
                future.set_result(await self.function())
            except asyncio.CancelledError:
                future.cancel()
                raise
            except Exception as error:
                future.set_exception(error)
