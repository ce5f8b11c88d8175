"""What the benchmarks ask of a project, as its owner would write it: app/api/measured.py there."""

import asyncio

from app.chassis.database import Writer
from app.chassis.routing import DatabaseRoute
from app.chassis.streaming import Events, EventStream, ServerSentEvent
from app.models import Note
from fastapi import APIRouter, HTTPException

router = APIRouter(route_class=DatabaseRoute)


@router.get("/trivial")
async def trivial() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/waiting")
async def waiting() -> EventStream:
    """A stream on which nothing happens but heartbeats."""
    return EventStream(nothing())


async def nothing() -> Events:
    yield ServerSentEvent(data={"status": "open"})
    await asyncio.Event().wait()


@router.post("/counters/{note_id}/increment")
def increment(note_id: int, session: Writer) -> dict[str, int]:
    """Read, modify, write: a note whose text is a number."""
    note = session.get(Note, note_id)
    if note is None:
        raise HTTPException(404, "There is no such note")
    value = int(note.text) + 1
    note.text = str(value)
    return {"counter": value}
