"""The least that FastAPI costs: no middleware, no logs, and the driver without SQLAlchemy."""

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field

app = FastAPI(openapi_url=None)
lock = threading.Lock()
connections: list[sqlite3.Connection] = []


class Note(BaseModel):
    text: str = Field(min_length=1, max_length=2000)


@app.get("/")
async def trivial() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/waiting", response_class=EventSourceResponse)
async def waiting() -> AsyncIterator[dict[str, str]]:
    yield {"status": "open"}
    await asyncio.Event().wait()


@app.post("/notes", status_code=201)
def insert(note: Note) -> dict[str, str | int | None]:
    created = datetime.now(UTC).isoformat()
    with lock:
        if not connections:
            path = os.environ["DATABASE"]
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA synchronous=FULL")
            connections.append(connection)
        with closing(connections[0].cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute(
                "INSERT INTO notes (text, created_at) VALUES (?, ?)",
                (note.text, datetime.now(UTC).replace(tzinfo=None).isoformat(" ")),
            )
            cursor.execute("COMMIT")
            return {"id": cursor.lastrowid, "text": note.text, "created_at": created}
