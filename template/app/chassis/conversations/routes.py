# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Routes of threads and their messages."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.chassis import openapi
from app.chassis.conversations.models import Message, Thread
from app.chassis.conversations.owner import Owner
from app.chassis.conversations.replies import LEASE, Position, Replies, is_written
from app.chassis.conversations.settings import ConversationSettings
from app.chassis.conversations.turns import VISIBLE, Provider, Turn, is_blank
from app.chassis.database import Database, Reader, Writer, get_database
from app.chassis.routing import DatabaseRoute
from app.chassis.streaming import EventStream, LastEventId
from app.chassis.times import UtcTime, now

router = APIRouter(prefix="/threads", tags=["conversations"], route_class=DatabaseRoute)

PAGE: Final = 100
"""Maximum number of threads or messages in one answer."""

HISTORY: Final = 50
"""Maximum number of a thread's newest messages that the provider gets."""

HISTORY_BYTES: Final = 180_000
"""Maximum size of these messages in UTF-8.

It fits a model that takes 200,000 tokens, because no token is under a byte.
"""

MAX_TEXT: Final = 32_000
"""Maximum number of characters of a message."""

Id = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Number that the database can keep as an id."""


def not_blank(text: str) -> str:
    if is_blank(text):
        raise ValueError("must not be blank")
    return text


NotBlank = AfterValidator(not_blank)

PATTERN: Final[dict[str, Any]] = {"pattern": VISIBLE}
"""Pattern with the same rule for the OpenAPI document, which knows no functions."""

Title = Annotated[str, Field(min_length=1, max_length=200, json_schema_extra=PATTERN), NotBlank]

EVENT_ID: Final = re.compile("([0-9]{1,18})-([0-9]{1,18})")


class ThreadIn(BaseModel):
    title: Title = "New conversation"


class ThreadChange(BaseModel):
    title: Title


class ThreadOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    title: str
    created_at: UtcTime
    updated_at: UtcTime


class MessageIn(BaseModel):
    text: Annotated[
        str, Field(min_length=1, max_length=MAX_TEXT, json_schema_extra=PATTERN), NotBlank
    ]
    role: Literal["user"] = "user"


class MessageOut(BaseModel):
    id: int
    role: Literal["user", "assistant"]
    status: Literal["complete", "interrupted", "streaming"]
    text: str
    created_at: UtcTime


class ThreadWithMessages(ThreadOut):
    messages: list[MessageOut]


Limit = Annotated[int, Query(ge=1, le=PAGE)]
Before = Annotated[Id | None, Query(description="The last id of the page before.")]


def install(app: FastAPI, settings: ConversationSettings, provider: Provider) -> None:
    """Add the routes, and the object that writes the answers."""
    app.state.replies = Replies(app.state.database, provider, settings)
    app.include_router(router)


def find_thread(session: Session, thread_id: int, owner: int | None) -> Thread:
    """Return the thread, or raise 404, also for another person's, so that nobody learns of it."""
    thread = session.get(Thread, thread_id)
    if thread is None or thread.owner_id != owner:
        raise HTTPException(404, "There is no such thread")
    return thread


def get_replies(request: Request) -> Replies:
    replies: Replies = request.app.state.replies
    return replies


OpenReplies = Annotated[Replies, Depends(get_replies)]


@router.post("", status_code=201, response_model=ThreadOut)
def create_thread(
    session: Writer, owner: Owner, replies: OpenReplies, thread: ThreadIn | None = None
) -> Thread:
    most = replies.settings.max_threads_per_person
    last = select(Thread.id).where(Thread.owner_id == owner).offset(most - 1).limit(1)
    if owner is not None and session.scalar(last) is not None:
        raise HTTPException(409, f"You have {most} threads, as many as one may have; delete one")
    created = Thread(owner_id=owner, title=(thread or ThreadIn()).title)
    session.add(created)
    session.flush()
    return created


@router.get("", response_model=list[ThreadOut])
def list_threads(
    session: Reader, owner: Owner, before: Before = None, limit: Limit = PAGE
) -> Sequence[Thread]:
    """List threads, the newest first."""
    query = select(Thread).where(Thread.owner_id == owner).order_by(Thread.id.desc())
    if before is not None:
        query = query.where(Thread.id < before)
    return session.scalars(query.limit(limit)).all()


@router.get("/{thread_id}")
def read_thread(
    thread_id: Id, session: Reader, owner: Owner, before: Before = None, limit: Limit = PAGE
) -> ThreadWithMessages:
    """Return a thread with its newest messages, the oldest of them first."""
    thread = find_thread(session, thread_id, owner)
    found = newest_messages(session, thread_id, limit, before)
    return ThreadWithMessages(
        **ThreadOut.model_validate(thread).model_dump(),
        messages=[describe(message) for message in found],
    )


@router.patch("/{thread_id}", response_model=ThreadOut)
def rename_thread(thread_id: Id, change: ThreadChange, session: Writer, owner: Owner) -> Thread:
    thread = find_thread(session, thread_id, owner)
    thread.title = change.title
    return thread


@router.delete("/{thread_id}", status_code=204)
def delete_thread(thread_id: Id, session: Writer, owner: Owner) -> None:
    """Delete a thread with its messages. An answer that is being written ends."""
    session.delete(find_thread(session, thread_id, owner))


@router.post(
    "/{thread_id}/chat",
    response_class=EventStream,
    responses={429: openapi.problem("Too many answers to the person are still being written")},
)
async def chat(
    thread_id: Id,
    message: MessageIn,
    owner: Owner,
    database: Annotated[Database, Depends(get_database)],
    replies: OpenReplies,
    last_event_id: LastEventId[str | None] = None,
) -> EventStream:
    """Keep a message, and stream the answer to it.

    Events: `message` with a piece of `text`, and in the end `done` with the answer's `message_id`
    and `status`, or `error` with a `detail`. Sent again with Last-Event-ID, the request
    adds no message: the answer goes on after that event.
    """
    # Only a request that is allowed and valid gets as far as the database
    if last_event_id is not None:
        position = find_position(last_event_id)
        await database.run_reading(partial(find_answer, thread_id, position, owner))
        return EventStream(replies.resume(position))
    with replies.asked():
        most = replies.settings.max_answers_per_person
        keep = partial(keep_question, thread_id, owner, most, message.text)
        answer_id, turns = await database.run_writing(keep)
        # The answer begins once, and only when the question is kept
        return EventStream(replies.answer(answer_id, turns))


def keep_question(
    thread_id: int, owner: int | None, most: int, text: str, session: Session
) -> tuple[int, list[Turn]]:
    """Store a message and an empty answer. Return the answer's id, and the turns to send.

    A thread has one answer at a time, so another one is 409. If the person has the maximum number
    of answers in all processes, it is 429.
    """
    thread = find_thread(session, thread_id, owner)
    latest = newest_messages(session, thread_id, 1)
    if latest and is_written(latest[0]):
        raise HTTPException(409, "The last answer is still being written")
    if owner is not None and answers_of(session, owner) >= most:
        detail = f"You have {most} answers that are still being written; wait for one"
        raise HTTPException(429, detail, {"Retry-After": "5"})
    moment = now()
    thread.updated_at = moment
    session.add(Message(thread_id=thread_id, role="user", status="complete", text=text))
    session.flush()
    turns = history(session, thread_id)
    answer = Message(
        thread_id=thread_id,
        role="assistant",
        status="interrupted",
        text="",
        writing_until=moment + LEASE,
    )
    session.add(answer)
    session.flush()
    return answer.id, turns


def answers_of(session: Session, owner: int) -> int:
    """Return how many answers to a person are being written, each the newest of its thread."""
    newest = (
        select(Message.writing_until)
        .where(Message.thread_id == Thread.id)
        .order_by(Message.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    written = select(func.count()).select_from(Thread).where(Thread.owner_id == owner)
    return session.scalar(written.where(newest > now())) or 0


@router.get("/{thread_id}/messages/{message_id}/stream", response_class=EventStream)
def stream_message(
    thread_id: Id,
    message_id: Id,
    session: Reader,
    owner: Owner,
    replies: OpenReplies,
    last_event_id: LastEventId[str | None] = None,
) -> EventStream:
    """Stream an answer from its first character, or after Last-Event-ID.

    An EventSource can read it.
    """
    position = Position(message_id, 0)
    if last_event_id is not None:
        position = find_position(last_event_id)
    if position.message_id != message_id:
        raise HTTPException(404, "Last-Event-ID is of another message")
    find_answer(thread_id, position, owner, session)
    return EventStream(replies.resume(position))


def find_position(event_id: str) -> Position:
    """Return the position that an event's id names, or raise 404."""
    form = EVENT_ID.fullmatch(event_id)
    if form is None:
        raise HTTPException(404, "Last-Event-ID is of no answer")
    return Position(int(form[1]), int(form[2]))


def find_answer(thread_id: int, position: Position, owner: int | None, session: Session) -> None:
    """Raise 404 for a position that is in no answer of the thread."""
    find_thread(session, thread_id, owner)
    answer = session.get(Message, position.message_id)
    if answer is None or answer.thread_id != thread_id or answer.role != "assistant":
        raise HTTPException(404, "There is no such answer")


def newest_messages(
    session: Session, thread_id: int, limit: int, before: int | None = None
) -> list[Message]:
    """Return the newest messages of a thread, the oldest of them first."""
    query = select(Message).where(Message.thread_id == thread_id).order_by(Message.id.desc())
    if before is not None:
        query = query.where(Message.id < before)
    return list(session.scalars(query.limit(limit)))[::-1]


def history(session: Session, thread_id: int) -> list[Turn]:
    """Return a thread's turns for the provider, without those that it would refuse.

    Blank messages are left out. Messages of the same role that then follow each other become one.
    The first one is the person's. A message that is too old or does not fit is left out as a
    whole.
    """
    turns: list[Turn] = []
    room = HISTORY_BYTES
    for message in reversed(newest_messages(session, thread_id, HISTORY)):
        if is_blank(message.text):
            continue
        room -= len(message.text.encode())
        if turns and room < 0:
            break
        if turns and turns[-1].role == message.role:
            turns[-1] = Turn(message.role, f"{message.text}\n\n{turns[-1].text}")
        else:
            turns.append(Turn(message.role, message.text))
    if turns[-1].role == "assistant":
        turns.pop()
    return turns[::-1]


def describe(message: Message) -> MessageOut:
    return MessageOut(
        id=message.id,
        role=message.role,
        status="streaming" if is_written(message) else message.status,
        text=message.text,
        created_at=message.created_at,
    )
