"""Claude through Anthropic's own library, against a server that speaks its protocol."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.chassis import answers, check, proxies
from app.chassis.assembly import make_provider
from app.chassis.checks.finding import Finding
from app.chassis.conversations import anthropic
from app.chassis.conversations.anthropic import AnthropicProvider
from app.chassis.conversations.echo import EchoProvider
from app.chassis.conversations.owner import owner
from app.chassis.conversations.turns import ProviderError, Turn
from app.chassis.errors import ConfigurationError
from app.main import create_app
from app.settings import Settings

from ..databases import make_database
from ..production import RAILWAY, REQUIRED
from .claude import Claude, Cut, End, Fail, Refuse, Step, Stop
from .conftest import Service

TURNS = [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Again")]


def ask(claude: Claude, settings: Settings) -> tuple[str, str]:
    """The answer, and what the person is told of a failure."""

    async def collect() -> tuple[str, str]:
        provider = AnthropicProvider(pointed_at(claude, settings))
        text = ""
        try:
            async for piece in provider.stream(TURNS):
                text += piece
        except ProviderError as error:
            return text, str(error)
        finally:
            await provider.aclose()
        return text, ""

    return asyncio.run(asyncio.wait_for(collect(), 20))


def pointed_at(claude: Claude, settings: Settings) -> Settings:
    return settings.model_copy(
        update={"anthropic_base_url": claude.url, "anthropic_api_key": SecretStr("sk-test")}
    )


@pytest.fixture
def serve(settings: Settings) -> Iterator[Callable[[Claude], Service]]:
    """The service in front of a server, started once that is."""
    started: list[Service] = []

    def start(claude: Claude) -> Service:
        make_database(settings)
        app: FastAPI = create_app(pointed_at(claude, settings))
        app.dependency_overrides[owner] = lambda: 1
        started.append(Service(app).__enter__())
        return started[0]

    yield start
    for service in started:
        service.__exit__()


def test_the_conversation_is_asked_and_the_answer_streamed(settings: Settings) -> None:
    with Claude(["Hello", " there"]) as claude:
        assert ask(claude, settings) == ("Hello there", "")
        (request,) = claude.requests
        assert claude.headers[0]["authorization"] == "bearer sk-test"

    assert request["model"] == settings.anthropic_model
    assert request["max_tokens"] == settings.anthropic_max_tokens
    assert request["stream"] is True
    assert "system" not in request
    assert request["messages"] == [{"role": turn.role, "content": turn.text} for turn in TURNS]


def test_what_the_settings_say_is_asked(settings: Settings) -> None:
    changed = settings.model_copy(
        update={
            "anthropic_model": "claude-x",
            "anthropic_max_tokens": 7,
            "anthropic_system_prompt": "Be brief.",
        }
    )
    with Claude(["Yes"]) as claude:
        ask(claude, changed)
        (request,) = claude.requests

    assert (request["model"], request["max_tokens"]) == ("claude-x", 7)
    assert request["system"] == "Be brief."


@pytest.mark.parametrize("prompt", ["", " \n", "\u200b"])
def test_a_blank_prompt_is_not_sent(settings: Settings, prompt: str) -> None:
    with Claude(["Yes"]) as claude:
        told = ask(claude, settings.model_copy(update={"anthropic_system_prompt": prompt}))

    assert told == ("Yes", "")


def test_a_thread_goes_on_after_a_blank_answer(
    service: Service, app: FastAPI, settings: Settings
) -> None:
    thread = service.thread_id()
    with Claude(["\n\n", threading.Event()], ["Hello"]) as claude:
        app.state.replies.provider = AnthropicProvider(pointed_at(claude, settings))
        with service.chat(thread) as stream:
            stream.next()
        service.until(lambda: service.messages(thread)[1]["status"] == "interrupted")
        with service.chat(thread) as stream:
            events = stream.rest()

    assert [event.name for event in events] == ["message", "done"]


@pytest.mark.parametrize(
    ("refusal", "told", "requests"),
    [
        (Refuse(429, "rate_limit_error"), "asked too often", 3),
        (Refuse(529, "overloaded_error"), "overloaded", 3),
        (Refuse(500, "api_error"), "overloaded", 3),
        (Refuse(401, "authentication_error"), "key is not accepted", 1),
        (Refuse(403, "permission_error"), "key is not accepted", 1),
        (Refuse(400, "invalid_request_error"), "does not accept the request", 1),
        (Refuse(404, "not_found_error"), "does not accept the request", 1),
    ],
)
def test_a_refusal_is_told_in_our_words(
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    refusal: Refuse,
    told: str,
    requests: int,
) -> None:
    with Claude([refusal]) as claude:
        text, problem = ask(claude, settings)
        assert len(claude.requests) == requests

    assert text == ""
    assert told in problem
    assert "internal words" not in problem
    assert f"status {refusal.status}" in caplog.text
    assert "sk-test" not in caplog.text


@pytest.mark.parametrize(
    "refusal", [Refuse(429, "rate_limit_error"), Refuse(529, "overloaded_error")]
)
def test_a_passing_refusal_is_tried_again(settings: Settings, refusal: Refuse) -> None:
    with Claude([refusal], [refusal], ["Hello"]) as claude:
        assert ask(claude, settings) == ("Hello", "")


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (Cut(), "cut off"),
        (End(), "cut off"),
        (Fail("overloaded_error"), "overloaded"),
        (Fail("api_error"), "The model"),
        (Stop("max_tokens"), "ANTHROPIC_MAX_TOKENS"),
        (Stop("refusal"), "declined"),
        (Stop("model_context_window_exceeded"), "too long"),
    ],
)
def test_an_answer_that_breaks_off_keeps_what_has_come(
    settings: Settings, step: Step, told: str
) -> None:
    with Claude(["Hel", step]) as claude:
        text, problem = ask(claude, settings)
        assert len(claude.requests) == 1, "what has begun is not asked for again"

    assert text == "Hel"
    assert told in problem
    assert "internal words" not in problem


def test_a_server_that_is_silent_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anthropic, "TIMEOUT", 0.2)
    monkeypatch.setattr(anthropic, "RETRIES", 0)
    with Claude(["Hel", 30.0]) as claude:
        assert ask(claude, settings) == ("Hel", "The model does not answer")


def test_a_server_that_is_not_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anthropic, "RETRIES", 0)
    with Claude() as claude:
        pass
    text, problem = ask(claude, settings)

    assert text == ""
    assert problem == "The connection to the model was cut off"


def test_a_slow_first_word_arrives(settings: Settings, serve: Callable[[Claude], Service]) -> None:
    with Claude([1.5, "Hello"]) as claude:
        service = serve(claude)
        thread = service.thread_id()
        with service.chat(thread) as stream:
            first = stream.next()
            assert first is not None
            assert first.data == {"text": "Hello"}
            assert stream.rest()[-1].name == "done"


def test_a_failure_is_an_event_and_never_a_broken_stream(
    serve: Callable[[Claude], Service],
) -> None:
    with Claude(["Hel", Cut()]) as claude:
        service = serve(claude)
        thread = service.thread_id()
        with service.chat(thread) as stream:
            *_, last = stream.rest()
        assert last.name == "error"
        assert last.data["detail"] == "The connection to the model was cut off"
        message = service.messages(thread)[1]
        assert (message["status"], message["text"]) == ("interrupted", "Hel")


@pytest.mark.parametrize("steps", [[threading.Event()], ["Hello", threading.Event()]])
def test_a_client_that_goes_ends_the_request(
    serve: Callable[[Claude], Service], steps: list[Step]
) -> None:
    with Claude(steps) as claude:
        service = serve(claude)
        thread = service.thread_id()
        with service.chat(thread) as stream:
            service.until(lambda: len(claude.requests) == 1)
            if isinstance(steps[0], str):
                stream.next()
        left = time.monotonic()
        service.until(lambda: len(claude.departures) == 1)
        assert claude.departures[0] - left < 2


def test_without_a_key_development_echoes(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(make_provider(settings), EchoProvider)
    assert "ANTHROPIC_API_KEY" in caplog.text


@pytest.mark.parametrize("key", ["", "sk ant", "sk\nant", "schlüssel"])
def test_production_refuses_what_is_no_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)

    with pytest.raises(ConfigurationError) as refused:
        Settings.load()

    (problem,) = [line for line in refused.value.problems if "ANTHROPIC" in line]
    assert problem.startswith("ANTHROPIC_API_KEY: ")
    assert not key or key not in problem


def test_a_key_that_strangers_can_spend_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.chassis.assembly.check_backup", lambda _: [])

    def finding(**changes: str) -> Finding:
        found = {one.id: one for one in check.run({**RAILWAY, **REQUIRED, **changes})}
        return found["settings.ANTHROPIC_FOR_EVERYONE"]

    assert finding().status == "failed"
    assert finding(ANTHROPIC_FOR_EVERYONE="true").status == "ok"
    listed = finding(ALLOWED_EMAILS="ann@example.com").status
    assert listed == ("ok" if "oauth" in answers.FEATURES else "failed")
    assert not Settings.load().spent_by_strangers()


@pytest.mark.parametrize("address", ["api.anthropic.com", "ftp://x", "https://", "http://[x"])
def test_a_bad_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)

    with pytest.raises(ConfigurationError, match="ANTHROPIC_BASE_URL"):
        Settings.load()


def test_hosts_that_its_client_cannot_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in proxies.NAMES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "example.com:hunter2")
    named = ["NO_PROXY: httpx cannot read it; list host names, or unset it"]
    assert proxies.refusals("httpx") == named
