"""Answers: streamed, kept, resumed, and ended when nobody wants them."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from itertools import count
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event, update
from sqlalchemy.exc import OperationalError

from app.chassis import answers
from app.chassis.conversations import replies, routes
from app.chassis.conversations.models import Message
from app.chassis.conversations.owner import owner
from app.chassis.conversations.replies import LEASE, Position, Reply
from app.chassis.conversations.turns import ProviderError
from app.chassis.times import now
from app.main import create_app
from app.settings import Settings

from .conftest import Event, Model, Service


def texts(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.name == "message")


def shown(messages: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(message["role"], message["status"], message["text"]) for message in messages]


def test_an_answer_streams_and_is_kept(service: Service, model: Model) -> None:
    thread = service.thread_id()
    gate = threading.Event()
    model.pieces = ["Hello", gate, " you"]

    with service.chat(thread, "Hi") as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.next() == Event("message", {"text": "Hello"}, "2-5")
        assert shown(service.messages(thread))[1][:2] == ("assistant", "streaming")
        gate.set()
        assert stream.rest() == [
            Event("message", {"text": " you"}, "2-9"),
            Event("done", {"message_id": 2, "status": "complete"}, "2-9"),
        ]

    assert shown(service.messages(thread)) == [
        ("user", "complete", "Hi"),
        ("assistant", "complete", "Hello you"),
    ]
    assert not model.stopped.is_set()


def test_a_provider_is_given_the_conversation(service: Service, model: Model) -> None:
    thread = service.thread_id()
    for text in ("first", "second"):
        with service.chat(thread, text) as stream:
            stream.rest()

    assert model.asked == [
        [("user", "first")],
        [("user", "first"), ("assistant", "Hello there"), ("user", "second")],
    ]


def test_a_long_conversation_is_cut_at_a_message_of_the_persons(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "HISTORY", 2)
    thread = service.thread_id()
    for text in ("first", "second"):
        with service.chat(thread, text) as stream:
            stream.rest()

    assert model.asked[-1] == [("user", "second")]


BLANK = ["", "\n\n", "\u3000\u00a0", "\u200b", " \ufeff\x00\u2060"]


@pytest.mark.parametrize("text", BLANK)
def test_a_blank_answer_is_an_error_and_not_sent_again(
    service: Service, model: Model, text: str
) -> None:
    thread = service.thread_id()
    model.pieces = [text]
    with service.chat(thread, "first") as stream:
        *_, last = stream.rest()
    model.pieces = ["Hello"]
    with service.chat(thread, "second") as stream:
        assert stream.rest()[-1].name == "done"

    assert last.name == "error"
    assert last.data["detail"] == "The model has given no answer; ask again"
    kept = text.replace("\0", "")
    assert shown(service.messages(thread))[1] == ("assistant", "interrupted", kept)
    assert model.asked[-1] == [("user", "first\n\nsecond")]


def test_a_blank_answer_that_nobody_waited_for_is_not_sent_again(
    service: Service, model: Model
) -> None:
    thread = service.thread_id()
    model.pieces = ["\n\n", threading.Event()]
    with service.chat(thread, "first") as stream:
        stream.next()
    service.until(lambda: shown(service.messages(thread))[1][1] == "interrupted")
    model.pieces = ["Hello"]
    with service.chat(thread, "second") as stream:
        stream.rest()

    assert model.asked[-1] == [("user", "first\n\nsecond")]


@pytest.mark.parametrize("text", BLANK)
def test_what_an_earlier_release_has_kept_is_not_sent(
    service: Service, model: Model, text: str
) -> None:
    if answers.DATABASE == "postgresql":
        text = text.replace("\0", "")  # It keeps none
    thread = service.thread_id()
    rows = [("assistant", "of before"), ("user", "one"), ("assistant", text), ("user", "two")]
    rows += [("assistant", "Hello"), ("user", text), ("assistant", "still there?")]
    with service.app.state.database.write() as session:
        for role, kept in rows:
            row = {"thread_id": thread, "role": role, "status": "complete", "text": kept}
            session.add(Message(**row))
            session.flush()
    with service.chat(thread, "three") as stream:
        stream.rest()

    assert model.asked[-1] == [
        ("user", "one\n\ntwo"),
        ("assistant", "Hello\n\nstill there?"),
        ("user", "three"),
    ]
    assert len(service.messages(thread)) == len(rows) + 2


def test_what_is_too_long_for_the_model_is_left_out_from_its_beginning(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "HISTORY_BYTES", 20)
    thread = service.thread_id()
    model.pieces = ["ü" * 8]
    for text in ("first", "second", "x" * 30):
        with service.chat(thread, text) as stream:
            stream.rest()

    assert model.asked == [[("user", "first")], [("user", "second")], [("user", "x" * 30)]]


def test_one_answer_at_a_time(service: Service, model: Model) -> None:
    thread = service.thread_id()
    gate = threading.Event()
    model.pieces = [gate, "Hello"]

    with service.chat(thread) as stream:
        refused = service.client.post(f"/threads/{thread}/chat", json={"text": "again"})
        assert refused.status_code == 409
        gate.set()
        stream.rest()

    assert len(service.messages(thread)) == 2


def test_a_provider_that_fails_is_an_error_event(service: Service, model: Model) -> None:
    thread = service.thread_id()
    model.pieces = ["Hel", ProviderError("The model is overloaded")]

    with service.chat(thread) as stream:
        *_, last = stream.rest()

    assert last == Event("error", {"detail": "The model is overloaded", "message_id": 2}, "2-3")
    assert shown(service.messages(thread))[1] == ("assistant", "interrupted", "Hel")


def test_a_defect_is_an_error_event_without_internals(
    service: Service, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    thread = service.thread_id()
    model.pieces = ["Hel", RuntimeError("password=hunter2")]

    with service.chat(thread) as stream:
        *_, last = stream.rest()

    assert last.data == {"detail": "Internal server error", "message_id": 2}
    assert "hunter2" in caplog.text
    assert shown(service.messages(thread))[1] == ("assistant", "interrupted", "Hel")


def test_a_client_that_goes_stops_the_provider(service: Service, model: Model) -> None:
    thread = service.thread_id()
    model.pieces = ["Hello", threading.Event()]

    with service.chat(thread) as stream:
        stream.next()
    left = time.monotonic()

    assert model.stopped.wait(10)
    assert model.stopped_at - left < 2
    service.until(lambda: shown(service.messages(thread))[1][1] != "streaming")
    assert shown(service.messages(thread))[1] == ("assistant", "interrupted", "Hello")


def test_a_client_that_comes_back_at_once_finds_it_going_on(service: Service, model: Model) -> None:
    thread = service.thread_id()
    gate = threading.Event()
    model.pieces = ["Hello", gate, " you"]

    with service.chat(thread) as stream:
        stream.next()
        last_id = stream.last_id
    with service.chat(thread, last_id=last_id) as stream:
        gate.set()
        events = stream.rest()

    assert texts(events) == " you"
    assert events[-1].data["status"] == "complete"
    assert len(model.asked) == 1
    assert len(service.messages(thread)) == 2


def test_nothing_is_lost_or_repeated_however_often_it_is_cut(
    service: Service, model: Model
) -> None:
    thread = service.thread_id()
    gates = [threading.Event() for _ in range(8)]
    model.pieces = [piece for number, gate in enumerate(gates) for piece in (f"{number}ü ", gate)]
    received, last_id = "", ""

    for gate in gates:
        with service.chat(thread, last_id=last_id) as stream:
            event = stream.next()
            assert event is not None
            received += event.data["text"]
            last_id = stream.last_id
        gate.set()
    with service.chat(thread, last_id=last_id) as stream:
        events = stream.rest()

    assert received == "0ü 1ü 2ü 3ü 4ü 5ü 6ü 7ü "
    assert [event.name for event in events] == ["done"]
    assert shown(service.messages(thread))[1] == ("assistant", "complete", received)


def test_a_finished_answer_is_resumed_from_anywhere(service: Service) -> None:
    thread = service.thread_id()
    with service.chat(thread) as stream:
        stream.rest()

    for start, rest in ((0, "Hello there"), (5, " there"), (11, ""), (99, "")):
        with service.chat(thread, last_id=f"2-{start}") as stream:
            events = stream.rest()
        assert texts(events) == rest
        assert events[-1] == Event("done", {"message_id": 2, "status": "complete"}, stream.last_id)
    assert len(service.messages(thread)) == 2


def test_a_page_can_read_it_with_an_event_source(service: Service, model: Model) -> None:
    thread = service.thread_id()
    gate = threading.Event()
    model.pieces = ["Hello", gate, " you"]
    path = f"/threads/{thread}/messages/2/stream"

    with service.chat(thread) as stream:
        stream.next()
        gate.set()
        with service.client.stream("GET", path) as response:
            answer = response.read().decode()

    assert '{"text":"Hello' in answer
    assert '"status":"complete"' in answer
    later = service.client.get(path, headers={"Last-Event-ID": "2-5"}).text
    assert '{"text":" you"}' in later
    assert "Hello" not in later
    assert service.client.get(path, headers={"Last-Event-ID": "1-5"}).status_code == 404


def test_only_answers_of_the_thread_are_resumed(service: Service) -> None:
    first, second = service.thread_id(), service.thread_id()
    with service.chat(first) as stream:
        stream.rest()

    def resume(thread: int, last_id: str) -> int:
        return service.client.post(
            f"/threads/{thread}/chat", json={"text": "Hi"}, headers={"Last-Event-ID": last_id}
        ).status_code

    assert resume(second, "2-0") == 404
    assert resume(first, "1-0") == 404
    assert resume(first, "7-0") == 404
    for malformed in ("2", "x-1", "-1-2", "2-", "9" * 19 + "-1"):
        assert resume(first, malformed) == 404
    assert service.messages(second) == []


def test_a_stop_keeps_what_was_streamed(service: Service, model: Model) -> None:
    thread = service.thread_id()
    model.pieces = ["Hello", threading.Event()]

    with service.chat(thread) as stream:
        stream.next()
        service.stop()
        assert model.stopped.is_set()
        assert model.closed

    database = service.app.state.database
    kept = replies.read(database, 2)
    database.dispose()
    assert kept is not None
    assert (kept.status, kept.text, kept.writing_until) == ("interrupted", "Hello", None)


def test_unfinished_answers_are_kept_every_second(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed process leaves is what stands in the database meanwhile."""
    thread = service.thread_id()
    gate = threading.Event()
    model.pieces = ["Hello", gate]

    with service.chat(thread) as stream:
        stream.next()
        service.until(lambda: service.messages(thread)[1]["text"] == "Hello", seconds=5)
        stored = replies.read(service.app.state.database, 2)
        assert stored is not None
        assert stored.status == "interrupted"
        gate.set()
        stream.rest()


def test_what_a_killed_process_has_left_does_not_block_its_thread(
    service: Service, model: Model
) -> None:
    thread = service.thread_id()
    with service.app.state.database.write() as session:
        session.add(
            Message(
                thread_id=thread,
                role="assistant",
                status="interrupted",
                text="Hel",
                writing_until=now() - LEASE,
            )
        )

    assert shown(service.messages(thread)) == [("assistant", "interrupted", "Hel")]
    with service.chat(thread, "again") as stream:
        assert stream.rest()[-1].name == "done"


def test_the_answer_of_another_worker_is_followed(
    service: Service, model: Model, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker is one that knows of the answer by the database only."""
    monkeypatch.setattr(replies, "POLL", 0.02)
    thread = service.thread_id()
    database = app.state.database
    with database.write() as session:
        session.add(
            Message(
                thread_id=thread,
                role="assistant",
                status="interrupted",
                text="Hello",
                writing_until=now() + LEASE,
            )
        )

    with service.chat(thread, last_id="1-2") as stream:
        assert stream.next() == Event("message", {"text": "llo"}, "1-5")
        with database.write() as session:
            values = {"text": "Hello you", "status": "complete", "writing_until": None}
            session.execute(update(Message).values(values))
        events = stream.rest()

    assert texts(events) == " you"
    assert events[-1] == Event("done", {"message_id": 1, "status": "complete"}, "1-9")


def test_an_answer_goes_on_for_a_reader_of_another_process(
    service: Service, model: Model, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has the same database, and a model that nobody asks."""
    monkeypatch.setattr(replies, "GRACE", 0.3)
    monkeypatch.setattr(replies, "FOLLOWED", timedelta(seconds=0.5))
    monkeypatch.setattr(replies, "POLL", 0.05)
    thread = service.thread_id()
    gate = threading.Event()
    model.pieces = ["Hello", gate, " you"]
    other = create_app(settings)
    other.dependency_overrides[owner] = lambda: 1

    with service.chat(thread) as stream:
        stream.next()
        last_id = stream.last_id
    with Service(other) as elsewhere, elsewhere.chat(thread, last_id=last_id) as stream:
        assert not model.stopped.wait(1.5)
        gate.set()
        events = stream.rest()

    assert texts(events) == " you"
    assert events[-1].data["status"] == "complete"


def test_an_answer_ends_when_the_reader_of_another_process_goes(
    service: Service, model: Model, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "GRACE", 0.3)
    monkeypatch.setattr(replies, "FOLLOWED", timedelta(seconds=0.5))
    thread = service.thread_id()
    model.pieces = ["Hello", threading.Event()]
    other = create_app(settings)
    other.dependency_overrides[owner] = lambda: 1

    with Service(other) as elsewhere:
        with service.chat(thread) as stream:
            stream.next()
        with elsewhere.chat(thread, last_id=stream.last_id) as stream:
            assert not model.stopped.wait(0.5)
        assert model.stopped.wait(5)


def test_the_answers_of_a_person_are_counted_in_all_processes(
    service: Service, model: Model, app: FastAPI, settings: Settings
) -> None:
    model.pieces = ["Hello", threading.Event()]
    other = create_app(settings)
    other.dependency_overrides[owner] = lambda: 1
    other.state.replies.provider = model
    for one in (app, other):
        bound(one, max_answers_per_person=1)
    threads = [service.thread_id() for _ in range(2)]

    with Service(other) as elsewhere, service.chat(threads[0]):
        path = f"/threads/{threads[1]}/chat"
        assert elsewhere.client.post(path, json={"text": "Hi"}).status_code == 429
        assert elsewhere.messages(threads[1]) == []


def test_a_thread_has_one_answer_at_a_time_in_all_processes(
    service: Service, model: Model, app: FastAPI, settings: Settings
) -> None:
    model.pieces = ["Hello", threading.Event()]
    other = create_app(settings)
    other.dependency_overrides[owner] = lambda: 1
    other.state.replies.provider = model
    thread = service.thread_id()

    def ask(client: httpx.Client) -> int:
        with client.stream("POST", f"/threads/{thread}/chat", json={"text": "Hi"}) as response:
            barrier.wait(10)  # The answer of one is still written when the other is refused
            return response.status_code

    barrier = threading.Barrier(2)
    with Service(other) as elsewhere, ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(ask, (service.client, elsewhere.client))) == [200, 409]
    assert len(model.asked) == 1
    assert len(service.messages(thread)) == 2


def test_an_answer_ends_with_its_thread(service: Service, model: Model) -> None:
    thread = service.thread_id()
    model.pieces = ["Hello", threading.Event()]

    with service.chat(thread) as stream:
        stream.next()
        assert service.client.delete(f"/threads/{thread}").status_code == 204
        assert stream.rest()[-1].data["status"] == "interrupted"
    assert model.stopped.is_set()


def test_an_answer_that_cannot_be_kept_is_an_error(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = service.thread_id()
    gate = threading.Event()
    model.pieces = ["Hello", gate]

    def fail(*_: object, **__: object) -> list[Reply]:
        raise OperationalError(None, None, Exception("disk I/O error"))

    with service.chat(thread) as stream:
        stream.next()
        monkeypatch.setattr(replies, "save", fail)
        gate.set()
        last = stream.rest()[-1]

    assert last.name == "error"
    assert last.data["detail"] == "The answer could not be kept"


def test_a_client_that_goes_while_the_answer_is_kept_changes_nothing(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "GRACE", 0.01)
    keep, calls = replies.save, count()

    def slowly(*arguments: Any, **options: Any) -> list[Reply]:
        if "until" not in options:
            next(calls)
            time.sleep(0.3)
        return keep(*arguments, **options)

    monkeypatch.setattr(replies, "save", slowly)
    thread = service.thread_id()
    with service.chat(thread) as stream:
        stream.next()
        stream.next()

    service.until(lambda: shown(service.messages(thread))[1][1] == "complete")
    assert next(calls) == 1


def bound(app: FastAPI, **settings: int) -> None:
    replies = app.state.replies
    replies.settings = replies.settings.model_copy(update=settings)


def test_answers_at_once_are_bounded(service: Service, model: Model, app: FastAPI) -> None:
    gate = threading.Event()
    model.pieces = ["Hello", gate]
    threads = [service.thread_id() for _ in range(4)]

    def refusal(thread: int) -> tuple[int, str]:
        refused = service.client.post(f"/threads/{thread}/chat", json={"text": "Hi"})
        assert refused.headers["Retry-After"] == "5"
        return refused.status_code, refused.json()["detail"]

    bound(app, max_answers=3, max_answers_per_person=2)
    with ExitStack() as stack:
        streams = [stack.enter_context(service.chat(thread)) for thread in threads[:2]]
        told = "You have 2 answers that are still being written; wait for one"
        assert refusal(threads[2]) == (429, told)
        # who does not sign in is nobody in particular
        app.dependency_overrides[owner] = lambda: None
        strangers = [service.thread_id() for _ in range(2)]
        streams.append(stack.enter_context(service.chat(strangers[0])))
        assert refusal(strangers[1]) == (503, "Too many answers are being written; try again")
        assert service.messages(strangers[1]) == []
        gate.set()
        assert {stream.rest()[-1].name for stream in streams} == {"done"}
    with service.chat(strangers[1]) as stream:
        assert stream.rest()[-1].name == "done"


def test_a_place_is_kept_while_a_question_is_stored(
    service: Service, model: Model, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd that comes at once gets no more places than those who come one by one."""
    keep = routes.keep_question

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.2)
        return keep(*arguments)

    monkeypatch.setattr(routes, "keep_question", slowly)
    model.pieces = ["Hello", threading.Event()]
    bound(app, max_answers_per_person=1)
    threads = [service.thread_id() for _ in range(5)]

    def ask(thread: int) -> int:
        path = f"/threads/{thread}/chat"
        with service.client.stream("POST", path, json={"text": "Hi"}) as response:
            return response.status_code

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(ask, threads)) == [200, 429, 429, 429, 429]
    service.until(lambda: not app.state.replies._written)
    assert ask(service.thread_id()) == 200


def test_an_answer_that_nobody_begins_to_watch_ends(
    app: FastAPI, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "LEASE", timedelta(seconds=0.05))
    model.pieces = [threading.Event()]

    async def begin() -> None:
        app.state.replies.answer(1, [("user", "Hi")])
        (reply,) = app.state.replies._written.values()
        await reply.task

    asyncio.run(asyncio.wait_for(begin(), 10))
    assert model.stopped.is_set()


def test_who_is_refused_waits_for_no_lock(service: Service) -> None:
    thread = service.thread_id()
    with service.app.state.database.write() as session:
        session.connection()
        path = f"/threads/{thread}/chat"
        assert service.client.post(path, json={"text": " "}, timeout=3).status_code == 422
        assert service.client.post(path, content=b"{", timeout=3).status_code == 422
        session.rollback()


def test_an_event_id_is_a_position() -> None:
    assert str(Position(12, 340)) == "12-340"
    assert routes.find_position("12-340") == Position(12, 340)


def test_who_comes_back_puts_the_end_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def come_and_go() -> None:
        async def nobody(_: int) -> bool:
            return False

        reply = Reply(1, nobody)
        reply.task = asyncio.create_task(asyncio.sleep(60))
        for grace in (0.01, 60):
            monkeypatch.setattr(replies, "GRACE", grace)
            with reply.watched():
                pass
        await asyncio.sleep(0.1)
        assert not reply.task.cancelled()
        reply.task.cancel()

    asyncio.run(come_and_go())


def test_who_comes_back_needs_no_lock(service: Service, model: Model) -> None:
    thread = service.thread_id()
    gate = threading.Event()
    model.pieces = ["Hello", gate]

    with service.chat(thread) as stream:
        stream.next()
        last_id = stream.last_id
    with ExitStack() as writer:
        writer.enter_context(service.app.state.database.write()).connection()
        with service.chat(thread, last_id=last_id) as stream:
            writer.close()
            gate.set()
            assert stream.rest()[-1].data["status"] == "complete"


def test_an_answer_that_ends_is_not_taken_for_unfinished(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saving of unfinished answers goes on beside the end of many."""
    monkeypatch.setattr(replies, "SAVE_EVERY", 0.01)
    gate = threading.Event()
    model.pieces = ["Hello", gate]
    threads = [service.thread_id() for _ in range(10)]
    with ExitStack() as stack:
        streams = [stack.enter_context(service.chat(thread)) for thread in threads]
        with service.app.state.database.write() as session:
            session.connection()
            gate.set()
            time.sleep(0.5)
        assert {stream.rest()[-1].data["status"] for stream in streams} == {"complete"}

    assert {shown(service.messages(thread))[1][1] for thread in threads} == {"complete"}


@pytest.mark.skipif(answers.DATABASE != "sqlite", reason="several writers share nothing")
def test_answers_that_end_together_share_transactions(
    service: Service, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "SAVE_EVERY", 60.0)
    database, commits, gate = service.app.state.database, count(), threading.Event()
    model.pieces = ["Hello", gate]
    threads = [service.thread_id() for _ in range(10)]
    with ExitStack() as stack:
        streams = [stack.enter_context(service.chat(thread)) for thread in threads]
        event.listen(database.writer.engine, "commit", lambda _: next(commits))
        with database.write() as session:
            session.connection()
            gate.set()
            time.sleep(0.5)
        assert {stream.rest()[-1].data["status"] for stream in streams} == {"complete"}
    assert next(commits) < 6


def test_nothing_is_written_when_nothing_is_unfinished(service: Service) -> None:
    with service.app.state.database.read() as session:
        assert replies.save(session, {}) == []
        assert not session.in_transaction()
