"""The example routes."""

import asyncio

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.api.notes import new_notes
from app.chassis import signed_in


@pytest.fixture
def client(client: TestClient) -> TestClient:
    """A client for whom nobody has to sign in."""
    assert isinstance(client.app, FastAPI)
    for guard in signed_in():
        assert guard.dependency
        client.app.dependency_overrides[guard.dependency] = lambda: None
    return client


def test_a_note_is_kept(client: TestClient) -> None:
    created = client.post("/notes", json={"text": "Grüße 👋"})

    assert created.status_code == 201
    assert created.json()["created_at"].endswith("Z")
    assert client.get(f"/notes/{created.json()['id']}").json() == created.json()
    assert client.get("/notes").json() == [created.json()]


def test_pages_follow_the_last_id(client: TestClient) -> None:
    for number in range(5):
        client.post("/notes", json={"text": str(number)})

    first = client.get("/notes", params={"limit": 3}).json()
    rest = client.get("/notes", params={"limit": 3, "after": first[-1]["id"]}).json()

    assert [note["text"] for note in [*first, *rest]] == ["0", "1", "2", "3", "4"]


def test_what_is_not_a_note_is_refused(client: TestClient) -> None:
    assert client.post("/notes", json={"text": ""}).status_code == 422
    assert client.post("/notes", json={"text": "x" * 2001}).status_code == 422
    assert client.post("/notes", content=b'{"text": "\\ud800"}').status_code == 422
    assert client.post("/notes", content=b"not JSON").status_code == 422
    assert client.get("/notes/1").status_code == 404
    assert client.get(f"/notes/{2**63}").status_code == 422
    assert client.get("/notes").json() == []


def test_a_stream_starts_after_the_last_event(client: TestClient) -> None:
    for text in ("seen", "new"):
        client.post("/notes", json={"text": text})
    assert isinstance(client.app, FastAPI)
    database = client.app.state.database

    async def first(after: int) -> str:
        events = new_notes(database, after)
        event = await anext(events)
        await events.aclose()
        return str(event.data.text)

    assert asyncio.run(first(0)) == "seen"
    assert asyncio.run(first(1)) == "new"
    assert client.get("/notes/stream", headers={"Last-Event-ID": "x"}).status_code == 422
