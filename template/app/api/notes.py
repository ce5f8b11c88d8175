"""Example of routes that read, write and stream. Replace it with your own."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from app.chassis import (
    Database,
    Events,
    EventStream,
    LastEventId,
    Reader,
    Router,
    ServerSentEvent,
    UtcTime,
    Writer,
    signed_in,
)
from app.models import Note

router = Router(
    prefix="/notes",
    tags=["notes"],
    # The routes are for people who have signed in, or for everybody if there is no sign-in
    dependencies=signed_in(),
)

POLL_SECONDS = 1.0
PAGE = 100
BATCH = 20

one_stream_reads = CapacityLimiter(1)
"""Limiter that lets streams read one after the other.

So hundreds of new streams leave the other threads to requests.
"""

Id = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Number that the database can keep as an id."""


class NoteIn(BaseModel):
    text: str = Field(min_length=1, max_length=2000)


class NoteOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    text: str
    created_at: UtcTime


@router.post("", status_code=201, response_model=NoteOut)
def create_note(note: NoteIn, session: Writer) -> Note:
    created = Note(text=note.text)
    session.add(created)
    session.flush()
    return created


@router.get("", response_model=list[NoteOut])
def list_notes(
    session: Reader,
    after: Annotated[Id, Query(description="The last id of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
) -> Sequence[Note]:
    return session.scalars(select(Note).where(Note.id > after).order_by(Note.id).limit(limit)).all()


@router.get("/stream", response_class=EventStream)
async def stream_notes(request: Request, last_event_id: LastEventId[Id] = 0) -> EventStream:
    """Stream the notes after Last-Event-ID, or every note, and then new ones as they come."""
    return EventStream(new_notes(request.app.state.database, last_event_id))


async def new_notes(database: Database, after: int) -> Events:
    while True:
        notes = await run_sync(read_notes, database, after, limiter=one_stream_reads)
        for note in notes:
            yield ServerSentEvent(event="note", id=str(note.id), data=note)
            after = note.id
        if len(notes) < BATCH:
            await asyncio.sleep(POLL_SECONDS)


def read_notes(database: Database, after: int) -> list[NoteOut]:
    # A note beyond this id may still be followed by one with a smaller id
    newest = database.settled(Note.id)
    with database.read() as session:
        found = list_notes(session, after, BATCH)
        return [NoteOut.model_validate(note) for note in found if note.id <= newest]


@router.get("/{note_id}", response_model=NoteOut)
def read_note(note_id: Id, session: Reader) -> Note:
    note = session.get(Note, note_id)
    if note is None:
        raise HTTPException(404, "There is no such note")
    return note
