"""The routes of a rendered project's example, and the benchmarks' own, the plain right way.

Synchronous sessions in FastAPI's own thread pool, opened in the route; a transaction that may write
takes SQLite's lock at its begin. No logs, no headers, no checks.
"""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import String, create_engine, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

THREADS = 40
"""Of the stock thread pool, each of which may hold a connection."""

engine = create_engine(os.environ["DATABASE_URL"], pool_size=THREADS)
reading = sessionmaker(engine, expire_on_commit=False)
writing = sessionmaker(engine.execution_options(begin="IMMEDIATE"), expire_on_commit=False)
app = FastAPI()


@event.listens_for(engine, "connect")
def configure(connection, _) -> None:
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


@event.listens_for(engine, "begin")
def begin(connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', '')}")


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


@app.get("/health")
def health() -> dict[str, str]:
    with reading() as session:
        session.execute(text("SELECT 1"))
    return {"status": "ok"}


@app.post("/notes", status_code=201, response_model=NoteOut)
def create_note(note: NoteIn) -> Note:
    with writing.begin() as session:
        created = Note(text=note.text)
        session.add(created)
    return created


@app.get("/notes", response_model=list[NoteOut])
def list_notes(after: int = 0, limit: Annotated[int, Query(ge=1, le=100)] = 100) -> Sequence[Note]:
    with reading() as session:
        return session.scalars(
            select(Note).where(Note.id > after).order_by(Note.id).limit(limit)
        ).all()


@app.get("/notes/{note_id}", response_model=NoteOut)
def read_note(note_id: int) -> Note:
    with reading() as session:
        note = session.get(Note, note_id)
    if note is None:
        raise HTTPException(404, "There is no such note")
    return note


@app.post("/counters/{note_id}/increment")
def increment(note_id: int) -> dict[str, int]:
    with writing.begin() as session:
        note = session.get(Note, note_id)
        if note is None:
            raise HTTPException(404, "There is no such note")
        value = int(note.text) + 1
        note.text = str(value)
    return {"counter": value}
