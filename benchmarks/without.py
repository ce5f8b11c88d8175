"""Plain ways to do what the database's threads do, in a service that has `PLAIN` set.

`mechanisms` puts this into app/plain.py of a project, where it is imported last of all.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
from anyio.to_thread import run_sync
from app.chassis.sessions import lent
from app.chassis.sqlite.engines import READERS
from app.chassis.sqlite.readers import Readers
from app.chassis.sqlite.writer import SingleWriter
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session


def readers() -> None:
    """Read in the thread pool that FastAPI uses, with a limiter of as many threads."""
    limiter = anyio.CapacityLimiter(READERS)

    async def run(self: Any, function: Callable[[Session], Any]) -> Any:
        def read() -> Any:
            with lent(self._route_engine) as session:
                return function(session)

        return await run_sync(read, limiter=limiter)

    Readers.run = run  # type: ignore[method-assign]


def four() -> None:
    """Read in four threads of an executor, which wake the event loop for each result."""
    executor = ThreadPoolExecutor(READERS)

    async def run(self: Any, function: Callable[[Session], Any]) -> Any:
        def read() -> Any:
            with lent(self._route_engine) as session:
                return function(session)

        call = partial(copy_context().run, read)
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    Readers.run = run  # type: ignore[method-assign]


def writer() -> None:
    """Write in an executor of one thread, with a commit for each route."""
    executor = ThreadPoolExecutor(1)

    async def run(self: Any, function: Callable[[Session], Any]) -> Any:
        def write() -> Any:
            with self.session() as session:
                return function(session)

        return await asyncio.get_running_loop().run_in_executor(executor, write)

    SingleWriter.run = run  # type: ignore[method-assign]


def disk() -> None:
    """Commit as on a slow disk, which shows what it is worth to share commits."""
    event.listen(Engine, "commit", lambda _: time.sleep(0.005))


for name in filter(None, os.environ.get("PLAIN", "").split(",")):
    {"readers": readers, "four": four, "writer": writer, "disk": disk}[name]()
