"""The same routes on PostgreSQL, the usual way: asynchronous, at the database's own isolation.

A dependency commits when the route is over, with the pool that SQLAlchemy makes by default.
"""

import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import String, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine(os.environ["DATABASE_URL"])
sessions = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(2000))
    created_at: Mapped[datetime] = mapped_column(default=now)


class NoteIn(BaseModel):
    text: str = Field(min_length=1, max_length=2000)


class NoteOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    text: str
    created_at: datetime


async def get_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session
        await session.commit()


Session = Annotated[AsyncSession, Depends(get_session)]


@app.get("/health")
async def health(session: Session) -> dict[str, str]:
    await session.execute(text("SELECT 1"))
    return {"status": "ok"}


@app.post("/notes", status_code=201, response_model=NoteOut)
async def create_note(note: NoteIn, session: Session) -> Note:
    created = Note(text=note.text)
    session.add(created)
    await session.flush()
    return created


@app.get("/notes", response_model=list[NoteOut])
async def list_notes(
    session: Session, after: int = 0, limit: Annotated[int, Query(ge=1, le=100)] = 100
) -> Sequence[Note]:
    query = select(Note).where(Note.id > after).order_by(Note.id).limit(limit)
    return (await session.scalars(query)).all()


@app.get("/notes/{note_id}", response_model=NoteOut)
async def read_note(note_id: int, session: Session) -> Note:
    note = await session.get(Note, note_id)
    if note is None:
        raise HTTPException(404, "There is no such note")
    return note


@app.post("/counters/{note_id}/increment")
async def increment(note_id: int, session: Session) -> dict[str, int]:
    note = await session.get(Note, note_id)
    if note is None:
        raise HTTPException(404, "There is no such note")
    value = int(note.text) + 1
    note.text = str(value)
    return {"counter": value}
