"""Threads: made, listed, read, renamed, deleted, and seen by nobody else."""

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.chassis import assembly, migrate, revisions
from app.chassis.conversations.models import Message, Thread
from app.chassis.conversations.owner import owner
from app.chassis.conversations.routes import MAX_TEXT
from app.models import Base
from app.settings import Settings


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def create(client: TestClient, title: str) -> int:
    response = client.post("/threads", json={"title": title})
    assert response.status_code == 201
    return int(response.json()["id"])


def titles(client: TestClient, **parameters: int) -> list[str]:
    return [thread["title"] for thread in client.get("/threads", params=parameters).json()]


def test_a_thread_is_made_read_renamed_and_deleted(client: TestClient) -> None:
    thread = client.post("/threads").json()
    path = f"/threads/{thread['id']}"
    assert thread["title"] == "New conversation"
    assert thread["created_at"].endswith("Z")
    assert client.get(path).json() == {**thread, "messages": []}

    renamed = client.patch(path, json={"title": "Grüße 👋"}).json()
    assert renamed == {**thread, "title": "Grüße 👋"}
    assert client.get(path).json()["title"] == "Grüße 👋"

    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert titles(client) == []


def test_pages_follow_the_last_id(client: TestClient) -> None:
    ids = [create(client, str(number)) for number in range(5)]

    assert titles(client, limit=2) == ["4", "3"]
    assert titles(client, limit=2, before=ids[3]) == ["2", "1"]
    assert titles(client, before=ids[1]) == ["0"]
    assert titles(client, before=ids[0]) == []


def test_a_thread_is_read_from_its_newest_messages(client: TestClient, settings: Settings) -> None:
    thread = create(client, "long")
    database = assembly.engine.open(settings)
    with database.write() as session:
        for number in range(5):
            session.add(Message(thread_id=thread, role="user", status="complete", text=str(number)))
    database.dispose()

    newest = client.get(f"/threads/{thread}", params={"limit": 2}).json()["messages"]
    older = client.get(f"/threads/{thread}", params={"limit": 2, "before": newest[0]["id"]}).json()[
        "messages"
    ]

    assert [message["text"] for message in newest] == ["3", "4"]
    assert [message["text"] for message in older] == ["1", "2"]


def test_messages_go_with_their_thread(client: TestClient, settings: Settings) -> None:
    thread = create(client, "short")
    client.post(f"/threads/{thread}/chat", json={"text": "Hi"})

    client.delete(f"/threads/{thread}")

    database = assembly.engine.open(settings)
    with database.read() as session:
        assert session.query(Message).count() == 0
    database.dispose()


@pytest.mark.parametrize("title", ["", " ", "\u2060", "x" * 201, None, 7])
def test_a_bad_title_is_refused(client: TestClient, title: object) -> None:
    thread = create(client, "good")

    assert client.post("/threads", json={"title": title}).status_code == 422
    assert client.patch(f"/threads/{thread}", json={"title": title}).status_code == 422
    assert titles(client) == ["good"]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"text": ""},
        {"text": " \n"},
        {"text": "\u200b\u3000"},
        {"text": "x" * (MAX_TEXT + 1)},
        {"text": 7},
        {"text": "Hi", "role": "assistant"},
        {"text": "Hi", "role": "system"},
    ],
)
def test_a_bad_message_is_refused(client: TestClient, message: dict[str, object]) -> None:
    thread = create(client, "empty")

    assert client.post(f"/threads/{thread}/chat", json=message).status_code == 422
    assert client.get(f"/threads/{thread}").json()["messages"] == []


def test_the_longest_message_is_taken(client: TestClient) -> None:
    thread = create(client, "full")
    text = "ü" * MAX_TEXT

    assert client.post(f"/threads/{thread}/chat", json={"text": text}).status_code == 200
    assert client.get(f"/threads/{thread}").json()["messages"][0]["text"] == text


def test_a_message_that_is_too_long_says_how_long_it_may_be(client: TestClient) -> None:
    thread = client.post("/threads").json()["id"]
    answer = client.post(f"/threads/{thread}/chat", json={"text": "x" * 32_001})
    (problem,) = answer.json()["detail"]
    assert problem["msg"] == "String should have at most 32000 characters"


def test_threads_of_a_person_are_bounded(client: TestClient, app: FastAPI) -> None:
    replies = app.state.replies
    replies.settings = replies.settings.model_copy(update={"max_threads_per_person": 2})
    first = create(client, "first")
    create(client, "second")

    refused = client.post("/threads")
    assert refused.status_code == 409
    assert refused.json()["detail"] == "You have 2 threads, as many as one may have; delete one"
    app.dependency_overrides[owner] = lambda: 2
    create(client, "of another")
    app.dependency_overrides[owner] = lambda: 1
    client.delete(f"/threads/{first}")
    create(client, "third")


def requests_for(client: TestClient, thread: int) -> dict[str, int]:
    """The status of every request that a thread's path takes."""
    path = f"/threads/{thread}"
    return {
        "read": client.get(path).status_code,
        "rename": client.patch(path, json={"title": "mine"}).status_code,
        "chat": client.post(f"{path}/chat", json={"text": "Hi"}).status_code,
        "resume": client.post(
            f"{path}/chat", json={"text": "Hi"}, headers={"Last-Event-ID": "2-0"}
        ).status_code,
        "stream": client.get(f"{path}/messages/2/stream").status_code,
        "delete": client.delete(path).status_code,
    }


def test_there_is_no_unknown_thread(client: TestClient) -> None:
    assert set(requests_for(client, 1).values()) == {404}
    assert set(requests_for(client, 2**63 - 1).values()) == {404}
    assert set(requests_for(client, 2**63).values()) == {422}


def test_another_persons_thread_is_as_unknown(client: TestClient, app: FastAPI) -> None:
    thread = create(client, "secret")
    client.post(f"/threads/{thread}/chat", json={"text": "Hi"})
    before = client.get(f"/threads/{thread}").json()

    for stranger in (2, None):
        app.dependency_overrides[owner] = lambda stranger=stranger: stranger
        assert set(requests_for(client, thread).values()) == {404}
        assert titles(client) == []

    app.dependency_overrides[owner] = lambda: 1
    assert client.get(f"/threads/{thread}").json() == before


def test_the_revisions_make_the_tables_that_the_code_knows(settings: Settings) -> None:
    migrate.upgrade(settings)
    (schema,) = (schema for schema in revisions.FEATURES if schema.name == "conversations")
    assert {Thread.__tablename__, Message.__tablename__} == set(schema.tables)
    database = assembly.engine.open(settings)
    options = {"include_object": migrate.belongs_to(schema)}
    try:
        with database.readers.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, Base.metadata) == []
    finally:
        database.dispose()
