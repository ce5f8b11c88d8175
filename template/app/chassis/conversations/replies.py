# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Answers that are being written, each by one task for all of its watchers.

The task does not belong to the request. A client that comes back within GRACE finds that the
answer goes on, also if it comes to another process, which follows the answer in the database. When
nobody watches or follows any more, or the service stops, the provider is told to stop, and the text
so far is kept.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from anyio.to_thread import run_sync
from fastapi import HTTPException
from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.chassis.conversations.models import Message
from app.chassis.conversations.settings import ConversationSettings
from app.chassis.conversations.turns import Provider, ProviderError, Status, Turn, is_blank
from app.chassis.database import Database, DatabaseBusyError
from app.chassis.streaming import Events, ServerSentEvent
from app.chassis.times import now

logger = logging.getLogger(__name__)

GRACE: Final = 1.0
"""Grace period in seconds, after which an answer that nobody watches ends."""

COME_BACK: Final = 250
"""Milliseconds that a browser waits before it comes back.

Together with a new connection, this takes less time than GRACE.
"""

SAVE_EVERY: Final = 1.0
"""Seconds between two savings of unfinished answers, all in one transaction.

A killed process loses the text of this time.
"""

LEASE: Final = timedelta(seconds=10)
"""Time after which an unfinished answer that was not saved again counts as abandoned."""

POLL: Final = 0.5
"""Seconds between two reads of an answer that another process writes."""

FOLLOWED: Final = timedelta(seconds=3)
"""Time for which a reader in another process keeps an answer going. It is renewed after half."""

STORE: Final = update(Message).where(
    Message.id == bindparam("message_id"),
    Message.role == "assistant",
    # An answer that has been kept as a whole meanwhile stays as it is
    Message.writing_until.is_not(None),
)


class Position(NamedTuple):
    """Position of a client in an answer. An event's id is `MESSAGE-CHARACTERS`."""

    message_id: int
    characters: int

    def __str__(self) -> str:
        return f"{self.message_id}-{self.characters}"


class Reply:
    """Answer that this process writes, with its text so far."""

    def __init__(self, message_id: int, is_followed: Callable[[int], Awaitable[bool]]) -> None:
        self.message_id = message_id
        self.is_followed = is_followed
        self.text = ""
        self.status: Status | None = None
        self.problem = ""
        self.task: asyncio.Task[None] | None = None
        self._watchers = 0
        self._abandoned: asyncio.Task[None] | None = None
        self.grows = True
        """True while more text may come."""
        self.changed = asyncio.Event()
        """Event that is set once, at the next change, and then replaced."""

    def add(self, text: str) -> None:
        self.text += text.replace("\0", "")  # Not every database keeps this character
        self._tell()

    def finish(self, status: Status, problem: str) -> None:
        self.status = status
        self.problem = problem
        if self._abandoned:
            self._abandoned.cancel()
        self._tell()

    def stop(self) -> None:
        """Stop writing, and keep the text so far."""
        if self.task and self.grows:
            self.grows = False
            self.task.cancel()

    @contextmanager
    def watched(self, grace: float | None = None) -> Iterator[None]:
        """Count a watcher, and end the answer `grace` seconds after the last one has gone.

        It goes on while somebody follows it in another process.
        """
        self._watchers += 1
        if self._abandoned:
            self._abandoned.cancel()
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers and self.grows:
                self._abandoned = asyncio.create_task(self._end_after(grace or GRACE))

    async def _end_after(self, grace: float) -> None:
        await asyncio.sleep(grace)
        # Only the database knows of readers elsewhere
        while self.grows and await self.is_followed(self.message_id):  # noqa: ASYNC110
            await asyncio.sleep(GRACE)
        self.stop()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Replies:
    """Answers that this process writes. app/main.py may put another provider in its place."""

    def __init__(
        self, database: Database, provider: Provider, settings: ConversationSettings
    ) -> None:
        self.database = database
        self.provider = provider
        self.settings = settings
        self._asked = 0
        self._written: dict[int, Reply] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Save answers while the service runs, and keep all of them when it stops."""
        saving = asyncio.create_task(self._save_now_and_then())
        try:
            yield
        finally:
            saving.cancel()
            tasks = [reply.task for reply in self._written.values() if reply.task]
            for reply in self._written.values():
                reply.stop()
            await asyncio.gather(*tasks)
            await self.provider.aclose()

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Reserve a place for an answer while its question is stored and until it begins.

        Raise 503 if this process has the maximum number of answers.
        """
        if self._asked + len(self._written) >= self.settings.max_answers:
            detail = "Too many answers are being written; try again"
            raise HTTPException(503, detail, {"Retry-After": "5"})
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    def answer(self, message_id: int, turns: Sequence[Turn]) -> Events:
        """Begin an answer, and return its events from the first character on."""
        reply = Reply(message_id, self._is_followed)
        self._written[message_id] = reply
        reply.task = asyncio.create_task(self._write(reply, turns))
        # A client that has not begun to watch after this time has gone
        with reply.watched(LEASE.total_seconds()):
            return watch(reply, 0)

    def resume(self, position: Position) -> Events:
        """Return the events after a position of an answer, finished or not."""
        reply = self._written.get(position.message_id)
        return watch(reply, position.characters) if reply else follow(self.database, position)

    async def _is_followed(self, message_id: int) -> bool:
        """Return whether a reader of another process has asked for the answer."""
        try:
            message = await run_sync(read, self.database, message_id)
        except (DatabaseBusyError, SQLAlchemyError):
            return False
        return is_ahead(message.followed_until if message else None)

    async def _write(self, reply: Reply, turns: Sequence[Turn]) -> None:
        status: Status = "interrupted"
        problem = ""
        try:
            async with aclosing(self.provider.stream(turns)) as pieces:
                async for text in pieces:
                    reply.add(text)
            if is_blank(reply.text):
                raise ProviderError("The model has given no answer; ask again")
            status = "complete"
        except ProviderError as error:
            problem = str(error)
        except asyncio.CancelledError:
            logger.info("Answer %d is interrupted", reply.message_id)
        except Exception:
            logger.exception("Answer %d failed", reply.message_id)
            problem = "Internal server error"
        reply.grows = False  # From here on `stop` does not interrupt the storing
        try:
            await self.database.run_writing(partial(save, replies={reply: status}))
        except Exception:  # The watchers have to learn of every error of the database
            logger.exception("Answer %d could not be kept", reply.message_id)
            status, problem = "interrupted", "The answer could not be kept"
        reply.finish(status, problem)
        del self._written[reply.message_id]

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY)
            if not self._written:
                continue
            try:
                gone = await self.database.run_writing(self._save_growing)
            except (DatabaseBusyError, SQLAlchemyError) as error:
                logger.warning("Unfinished answers are not kept now: %s", type(error).__name__)
                continue
            for reply in gone:
                reply.stop()

    def _save_growing(self, session: Session) -> list[Reply]:
        # The writer's thread asks only now, so that no answer that was kept meanwhile is among them
        growing = [reply for reply in list(self._written.values()) if reply.grows]
        return save(session, dict.fromkeys(growing, "interrupted"), until=now() + LEASE)


def save(
    session: Session, replies: Mapping[Reply, Status], until: datetime | None = None
) -> list[Reply]:
    """Store the answers with their status, and return those whose thread is gone.

    They count as being written `until` that time.
    """
    values = [
        {
            "message_id": reply.message_id,
            "text": reply.text,
            "status": status,
            "writing_until": until,
        }
        for reply, status in replies.items()
    ]
    # One statement without the ORM stores all, because there may be hundreds a second
    if not values or session.connection().execute(STORE, values).rowcount == len(values):
        return []
    ids = [reply.message_id for reply in replies]
    found = set(session.scalars(select(Message.id).where(Message.id.in_(ids))))
    return [reply for reply in replies if reply.message_id not in found]


async def watch(reply: Reply, characters: int) -> Events:
    """Yield the events of an answer that this process writes."""
    with reply.watched():
        yield remember(Position(reply.message_id, characters))
        while True:
            if text := reply.text[characters:]:
                characters += len(text)
                yield piece(Position(reply.message_id, characters), text)
            elif reply.status is None:
                await reply.changed.wait()
            else:
                break
    yield end(reply.message_id, reply.status, reply.problem)


async def follow(database: Database, position: Position) -> Events:
    """Yield the events of an answer that is finished, or that another process writes."""
    message_id, characters = position
    yield remember(position)
    while True:
        message = await run_sync(read, database, message_id)
        if message is None:
            return  # The thread was deleted meanwhile
        if is_written(message) and (message.followed_until or now()) < now() + FOLLOWED / 2:
            with suppress(DatabaseBusyError, SQLAlchemyError):  # The next time may be in time
                await database.run_writing(partial(keep_going, message_id))
        if text := message.text[characters:]:
            characters += len(text)
            yield piece(Position(message_id, characters), text)
        if not is_written(message):
            break
        await asyncio.sleep(POLL)
    yield end(message_id, message.status)


def read(database: Database, message_id: int) -> Message | None:
    with database.read() as session:
        return session.scalar(select(Message).where(Message.id == message_id))


def keep_going(message_id: int, session: Session) -> None:
    """Tell the process that writes the answer that somebody follows it."""
    written = update(Message).where(Message.id == message_id, Message.writing_until.is_not(None))
    session.execute(written.values(followed_until=now() + FOLLOWED))


def is_written(message: Message) -> bool:
    """Return whether some process is writing this answer."""
    return is_ahead(message.writing_until)


def is_ahead(moment: datetime | None) -> bool:
    return moment is not None and moment > now()


def remember(position: Position) -> ServerSentEvent:
    """Return an id to come back with before there is any text.

    A page's script sees no event.
    """
    return ServerSentEvent(id=str(position), retry=COME_BACK)


def piece(position: Position, text: str) -> ServerSentEvent:
    return ServerSentEvent(event="message", id=str(position), data={"text": text})


def end(message_id: int, status: str, problem: str = "") -> ServerSentEvent:
    if problem:
        data = {"detail": problem, "message_id": message_id}
        return ServerSentEvent(event="error", data=data)
    return ServerSentEvent(event="done", data={"message_id": message_id, "status": status})
