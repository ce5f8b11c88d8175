"""The page at `/`, as a person sees it: a real browser, a real service, a real sign-in."""

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from selenium.webdriver.common.keys import Keys

from support.browser import Browser, Line, browsing, until
from support.service import Service, free_port, router_added

pytestmark = pytest.mark.long

# seconds of an answer, at 20 words a second
TEXT = " ".join(f"{number}-é-\N{STEAM LOCOMOTIVE}" for number in range(150))

# An answer to this ends with an error, as those of a model that is out of order do.
FAILING = """
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter

from app.chassis.conversations.echo import EchoProvider
from app.chassis.conversations.turns import ProviderError, Turn

router = APIRouter()
echo = EchoProvider.stream


async def stream(self: EchoProvider, turns: Sequence[Turn]) -> AsyncGenerator[str, None]:
    async for piece in echo(self, turns):
        if "fail" in piece:
            raise ProviderError("The model is out of order")
        yield piece


EchoProvider.stream = stream
"""

STREAM = (
    ": heartbeat\n\n"
    "id: 7-0\r\nretry: 250\r\n\r\n"
    'event: message\rid: 7-3\rdata: {"text": "é\N{STEAM LOCOMOTIVE}"}\r\r'
    "data:first\ndata:  second\n:comment\n\n"
    "data\nunknown\n\n"
    "event: done\ndata: never finished\n"
).encode()

EVENTS = """
const [bytes, size, finish] = arguments;
const body = new ReadableStream({
  start(controller) {
    for (let at = 0; at < bytes.length; at += size) {
      controller.enqueue(Uint8Array.from(bytes.slice(at, at + size)));
    }
    controller.close();
  },
});
(async () => {
  const found = [];
  for await (const event of events(body)) found.push(event);
  return found;
})().then(finish, (error) => finish(String(error)));
"""


# what one would have to scroll sideways
WIDER = """
const elements = [document.scrollingElement, ...document.querySelectorAll("body, body *")];
return elements
  .filter((element) => element.clientWidth && element.scrollWidth > element.clientWidth)
  .filter((element) => getComputedStyle(element).overflowX !== "hidden")
  .map((element) => element.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def project(installed: Callable[..., Path]) -> Iterator[Path]:
    project = installed(features="[conversations]")
    with router_added(project, "failing", FAILING):
        yield project


@pytest.fixture(scope="module")
def service(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(project, tmp_path_factory.mktemp("service") / "data") as service:
        yield service.wait_until_healthy()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with browsing(tmp_path / "profile") as browser:
        yield browser


def begin(browser: Browser, url: str, text: str) -> None:
    """Send a first message."""
    browser.open(url)
    browser.find("#text").send_keys(text, Keys.ENTER)


def has_begun(browser: Browser) -> bool:
    return browser.last().role == "assistant" and len(browser.last().text) > 50


def stored(client: httpx.Client) -> list[tuple[str, str, str]]:
    """Role, status and text of the newest thread's messages."""
    newest = client.get("/threads").json()[0]["id"]
    messages = client.get(f"/threads/{newest}").json()["messages"]
    return [(message["role"], message["status"], message["text"]) for message in messages]


def shown(browser: Browser) -> list[tuple[str, str, str]]:
    return [(message.role, message.status, message.text) for message in browser.messages()]


def test_a_thread_can_be_opened_renamed_and_deleted(browser: Browser, service: Service) -> None:
    begin(browser, service.url, "What carries a track?")
    until(lambda: browser.last().status == "complete")
    assert shown(browser) == stored(service.client)
    browser.press("New thread")
    browser.type("And a second one")
    browser.press("Send")
    until(lambda: browser.last().status == "complete")
    until(lambda: browser.threads()[:2] == ["And a second one", "What carries a track?"])

    browser.press("What carries a track?")
    until(lambda: browser.last().text == "What carries a track?")
    browser.press("Rename")
    question = browser.driver.switch_to.alert
    question.send_keys("<b>Ballast</b> & sleepers")
    question.accept()
    until(lambda: browser.threads()[1] == "<b>Ballast</b> & sleepers")
    assert browser.find("h2").text == "<b>Ballast</b> & sleepers"

    browser.driver.refresh()
    until(lambda: browser.last().text == "What carries a track?")
    browser.press("Delete")
    browser.driver.switch_to.alert.accept()
    until(lambda: browser.threads()[:1] == ["And a second one"])
    until(lambda: "Ballast" not in browser.find("body").text)
    assert browser.messages() == []


def test_the_keyboard_is_enough(browser: Browser, service: Service) -> None:
    browser.open(service.url)
    browser.type(Keys.TAB, Keys.ENTER)
    browser.type("One line", Keys.SHIFT + Keys.ENTER + Keys.NULL, "and another", Keys.ENTER)
    until(lambda: browser.last().status == "complete")
    assert browser.last().text == "One line\nand another"

    browser.type(TEXT, Keys.ENTER)
    until(lambda: has_begun(browser))
    browser.type(Keys.TAB, Keys.ENTER)
    until(lambda: browser.last().status == "interrupted")


def test_stop_ends_the_answer(browser: Browser, service: Service) -> None:
    begin(browser, service.url, TEXT)
    until(lambda: has_begun(browser))
    browser.press("Stop")
    browser.labelled("Send")

    kept = stored(service.client)
    assert shown(browser) == kept
    assert kept[1][:2] == ("assistant", "interrupted")
    assert TEXT.startswith(kept[1][2])
    assert browser.says("Interrupted")


def test_an_answer_goes_on_after_the_connection_has_broken(
    browser: Browser, service: Service
) -> None:
    with Line(service.port) as line:
        begin(browser, line.url, TEXT)
        for words in (20, 60, 100):
            until(lambda words=words: len(browser.last().text.split()) > words)
            assert browser.last().status == "streaming"
            line.cut()
        until(lambda: browser.last().status != "streaming")

    assert shown(browser) == stored(service.client)
    assert shown(browser) == [("user", "complete", TEXT), ("assistant", "complete", TEXT)]
    assert browser.find("#status").text == ""


def test_an_answer_goes_on_after_a_reload(browser: Browser, service: Service) -> None:
    begin(browser, service.url, TEXT)
    until(lambda: has_begun(browser))
    browser.driver.refresh()
    until(lambda: browser.last().status == "complete")
    assert shown(browser) == [("user", "complete", TEXT), ("assistant", "complete", TEXT)]


def test_what_a_stopped_service_has_kept_is_shown_once(
    project: Path, tmp_path: Path, browser: Browser
) -> None:
    with Service(project, tmp_path / "data").wait_until_healthy() as first:
        begin(browser, first.url, TEXT)
        until(lambda: has_begun(browser))
        first.terminate()
        assert first.ended() == 0
        assert browser.last().status == "streaming"
        assert browser.says("Trying again")
    with Service(project, tmp_path / "data", port=first.port).wait_until_healthy() as second:
        until(lambda: browser.last().status == "interrupted")
        kept = stored(second.client)
        assert [part[:2] for part in kept] == [("user", "complete"), ("assistant", "interrupted")]
        assert TEXT.startswith(kept[1][2])
        assert len(kept[1][2]) < len(TEXT)
        assert shown(browser) == kept
        assert browser.says("Interrupted")
        browser.driver.refresh()
        until(lambda: shown(browser) == kept)


def test_errors_are_told_in_words(browser: Browser, service: Service) -> None:
    begin(browser, service.url, "Will it fail?")
    until(lambda: browser.says("The model is out of order"))
    assert browser.last().status == "interrupted"
    assert browser.last().text == "Will it "

    browser.driver.execute_script("document.getElementById('text').value = 'x'.repeat(32001)")
    browser.press("Send")
    until(lambda: browser.says("String should have at most 32000 characters"))
    assert len(browser.messages()) == 2
    assert len(browser.find("#text").get_property("value")) == 32001


def test_a_message_that_was_refused_is_not_lost(browser: Browser, service: Service) -> None:
    begin(browser, service.url, "First")
    until(lambda: browser.last().status == "complete")
    with closing(sqlite3.connect(service.log.with_name("app.db"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        browser.find("#text").send_keys("Second", Keys.ENTER)
        until(lambda: browser.says("The database is busy; try again"))
        other.execute("ROLLBACK")
    assert [message.text for message in browser.messages()] == ["First", "First"]
    assert browser.threads()[0] == "First"
    assert browser.find("#text").get_property("value") == "Second"
    browser.press("Send")
    until(lambda: len(browser.messages()) == 4 and browser.last().status == "complete")
    assert browser.last().text == "Second"


def test_events_are_read_however_they_arrive(browser: Browser, service: Service) -> None:
    browser.open(service.url)
    for size in (1, 2, 3, 7, len(STREAM)):
        assert browser.run(EVENTS, list(STREAM), size) == [
            {"event": "message", "data": ""},
            {"event": "message", "data": "", "id": "7-0", "retry": "250"},
            {"event": "message", "data": '{"text": "é\N{STEAM LOCOMOTIVE}"}', "id": "7-3"},
            {"event": "message", "data": "first\n second"},
            {"event": "message", "data": "", "unknown": ""},
        ], size


def test_it_fits_a_phone(browser: Browser, service: Service) -> None:
    metrics = {"width": 320, "height": 600, "deviceScaleFactor": 2, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    begin(browser, service.url, "x" * 400)
    until(lambda: browser.last().status == "complete")
    assert browser.driver.execute_script(WIDER) == []
    assert not browser.find("#nav").is_displayed()
    menu = browser.labelled("Threads")
    menu.click()
    assert menu.get_attribute("aria-expanded") == "true"
    assert browser.driver.execute_script(WIDER) == []
    browser.press("New thread")
    assert browser.find("#text").is_displayed()


@contextmanager
def provider(project: Path, log: Path) -> Iterator[str]:
    """A provider of accounts, which believes whatever one says; its address."""
    port = free_port()
    program = project / ".venv" / "bin" / "oidc-provider-mock"
    claims = '{"sub": "ada", "name": "Ada", "email": "ada@example.com", "email_verified": true}'
    command = [program, f"--port={port}", "--user-claims", claims]
    url = f"http://localhost:{port}"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            until(lambda: answers(f"{url}/.well-known/openid-configuration"))
            yield url
        finally:
            server.terminate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("features", ["[conversations, oauth]", "[oauth]"])
def test_people_sign_in_and_out(
    installed: Callable[..., Path], tmp_path: Path, browser: Browser, features: str
) -> None:
    project = installed(features=features, oauth_providers="[google, microsoft]")
    with provider(project, tmp_path / "provider.log") as issuer:
        variables = {
            "GOOGLE_ISSUER": issuer,
            "GOOGLE_CLIENT_ID": "billing",
            "GOOGLE_CLIENT_SECRET": "secret",
        }
        with Service(project, tmp_path / "data", **variables).wait_until_healthy() as service:
            browser.open(f"http://localhost:{service.port}/")
            assert browser.labelled("Sign in with Microsoft")
            browser.press("Sign in with Google")
            until(lambda: browser.driver.current_url.startswith(issuer))
            browser.find("input[name=sub]").send_keys("ada", Keys.ENTER)
            browser.labelled("Sign out")
            assert browser.driver.current_url == f"http://localhost:{service.port}/"
            assert browser.says("ada@example.com")

            if "conversations" in features:
                converse(browser)
            else:
                assert browser.says("Hello, Ada")
                assert browser.says("signed in with Google")

            browser.press("Sign out")
            assert browser.labelled("Sign in with Google")
            assert not browser.says("ada@example.com")
            assert browser.messages() == []
            browser.driver.refresh()
            assert browser.labelled("Sign in with Google")
            assert not browser.says("Sign out")


def converse(browser: Browser) -> None:
    browser.press("New thread")
    browser.type(TEXT)
    browser.press("Send")
    lengths = set()
    while (answer := browser.last()).status == "streaming":
        assert TEXT.startswith(answer.text)
        lengths.add(len(answer.text))
    assert len(lengths) > 2
    assert answer.text == TEXT
    browser.driver.refresh()
    until(lambda: browser.last().status == "complete")
    assert [message.text for message in browser.messages()] == [TEXT, TEXT]
    # signed out elsewhere, as another tab would do it
    browser.run("fetch('/auth/logout', { method: 'POST' }).then(arguments[0])")
    browser.find("#text").send_keys("Nobody says this", Keys.ENTER)
    assert browser.labelled("Sign in with Google")
    assert not browser.says(TEXT[:10])
    browser.press("Sign in with Google")
    until(lambda: "localhost" in browser.driver.current_url)
    until(lambda: browser.driver.find_elements("name", "sub"))
    browser.find("input[name=sub]").send_keys("ada", Keys.ENTER)
    browser.labelled("Sign out")
    until(lambda: len(browser.threads()) == 1)
