"""What the command starts or writes ends or is undone, whenever a signal comes."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from support import git
from trackbed import bounded, carry, cli

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        bounded.on_signal(number, cli.interrupt)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the processes that have been started."""
    ids: list[int] = []
    begin = subprocess.Popen.__init__

    def note(self: "subprocess.Popen[bytes]", *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        ids.append(self.pid)

    monkeypatch.setattr(subprocess.Popen, "__init__", note)
    return ids


def then_send(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> None:
        function(*arguments, **options)
        os.kill(os.getpid(), number)

    return call


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(subprocess.Popen, "__init__"), (Thread, "start")],
    ids=["its start", "the start of its reader"],
)
def test_a_signal_during(
    owner: type,
    name: str,
    number: signal.Signals,
    started: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, then_send(number, getattr(owner, name)))

    with pytest.raises((KeyboardInterrupt, cli.Interrupted)) as raised:
        bounded.run(["sleep", "600"], env=os.environ, seconds=60, output=1000)

    assert raised.type is (KeyboardInterrupt if number == signal.SIGINT else cli.Interrupted)
    [pid] = started
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not bounded.running
    assert not bounded.waiting


@pytest.mark.usefixtures("handlers")
def test_another_signal_during_the_cleanup_does_not_end_it(
    started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Thread, "start", then_send(signal.SIGTERM, Thread.start))
    monkeypatch.setattr(bounded, "kill", then_send(signal.SIGHUP, bounded.kill))

    with pytest.raises(cli.Interrupted) as raised:
        bounded.run(["sleep", "600"], env=os.environ, seconds=60, output=1000)

    assert raised.value.number == signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_a_thread_that_cannot_be_started_leaves_no_program(
    started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", fail)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        bounded.run(["sleep", "600"], env=os.environ, seconds=60, output=1000)

    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


@pytest.mark.usefixtures("handlers")
def test_a_signal_does_not_stop_the_undoing_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, scratch = tmp_path / "service", tmp_path / "scratch"
    scratch.mkdir()
    git(tmp_path, "init", "--quiet", "service")
    for name in ("first", "second"):
        (service / name).write_text("mine", encoding="utf-8")
    git(service, "add", "--all")
    trial: Any = SimpleNamespace(project=SimpleNamespace(top=service), scratch=scratch)
    monkeypatch.setattr(carry, "delete", then_send(signal.SIGTERM, carry.delete))

    def fail() -> None:
        with carry.undone_on_failure(trial, ["first", "second"]):
            (service / "first").write_text("theirs", encoding="utf-8")
            raise OSError("the disk is full")

    with pytest.raises(cli.Interrupted):
        fail()

    for name in ("first", "second"):
        assert (service / name).read_text(encoding="utf-8") == "mine"
