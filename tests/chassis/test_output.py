"""Output that waits for nobody: what is written, what is counted, and when that is told."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from app.chassis import logs
from app.chassis.logs import (
    DURATION,
    IMPORTANT_LINES,
    LEFT,
    LINES,
    LINGER,
    ROOM,
    SPAN,
    STATUS,
    WIDTH,
    Output,
    RequestRecord,
    Shared,
    bucket,
    percentile,
    printed,
    report,
)

LIMIT = 50


class Pipe:
    """A pipe that is read when a test says so."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> None:
        os.set_blocking(self.writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writer, b"x" * 4095 + b"\n")
        os.set_blocking(self.writer, True)

    def read(self) -> list[str]:
        """The lines that are there within a moment, without what filled it."""
        os.set_blocking(self.reader, False)
        found, deadline = b"", time.monotonic() + 2.5
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                found += os.read(self.reader, 65536)
            time.sleep(0.005)
        return [line for line in found.decode().splitlines() if line.strip("x")]

    def close(self) -> None:
        for descriptor in (self.reader, self.writer):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


REQUEST = RequestRecord("app.request", "GET", "/", 200, 1.0, "::1")


def told(counts: list[int]) -> str:
    return json.dumps(vars(report(counts)))


def tallies(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_no_second_has_more_lines_than_the_window() -> None:
    window = Shared(10).usual
    taken = [now for now in (100 + step / 100 for step in range(300)) if window.take(now)]
    assert len(taken) == 30
    assert all(later - earlier >= 1 for earlier, later in zip(taken, taken[10:], strict=False))


def test_a_window_leaves_room_for_others() -> None:
    window = Shared(10).usual
    assert sum(window.take(100.0, leave=4) for _ in range(20)) == 6
    assert sum(window.take(100.1) for _ in range(20)) == 4


@pytest.mark.long
def test_requests_beyond_the_limit_are_counted_and_warnings_are_not_lost_to_them(
    pipe: Pipe,
) -> None:
    to = Output(pipe.writer, Shared(LIMIT), told)
    for _ in range(1000):
        to.put_request(REQUEST, lambda _: "a request")
    to.put_line(b"a message\n", important=False)
    for number in range(IMPORTANT_LINES + 5):
        to.put_line(f"warning {number}\n".encode(), important=True)
    lines = pipe.read()
    assert lines.count("a request") == LIMIT - LEFT
    assert lines.count("a message") == 1
    assert sum(line.startswith("warning") for line in lines) == IMPORTANT_LINES
    (tally,) = tallies(lines)
    assert tally["statuses"] == {"200": 1000 - LIMIT + LEFT}
    assert tally["warnings"] == 5
    assert 1.0 <= tally["p50_ms"] <= 1.05


def test_a_line_counts_in_the_second_in_which_it_is_written(pipe: Pipe) -> None:
    shared = Shared(LIMIT)
    to = Output(pipe.writer, shared, told)
    with shared.writing:  # as while somebody else writes
        to.put_line(b"a warning\n", important=True)
        time.sleep(0.3)
        turn = time.monotonic()
    to.flush(1.0)
    assert max(shared.important.cells[: shared.important.lines]) >= turn


def test_long_lines_of_both_streams_are_not_mixed(pipe: Pipe) -> None:
    shared = Shared(1000)
    long = {letter: letter.encode() * 300_000 for letter in "ab"}
    other = os.dup(pipe.writer)
    to = Output(pipe.writer, shared, told)
    to.put_line(long["a"] + b"\n", important=True)
    to.put_line(long["b"] + b"\n", important=True, descriptor=other)
    time.sleep(0.2)  # the first waits for room in the pipe
    assert sorted(pipe.read()) == [line.decode() for line in long.values()]
    os.close(other)


@pytest.mark.long
def test_who_does_not_read_holds_nobody_up_and_is_told(pipe: Pipe) -> None:
    to = Output(pipe.writer, Shared(100_000), told)
    pipe.fill()
    writers = [threading.Thread(target=put_many, args=(to, 2000)) for _ in range(2)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join(10)
        assert not thread.is_alive()
    assert to.size <= ROOM + 1000
    lines = pipe.read()
    written = sum(line.startswith("message") for line in lines)
    assert 0 < written < 4000
    assert [tally["dropped"] for tally in tallies(lines)] == [4000 - written]


def put_many(to: Output, lines: int) -> None:
    for number in range(lines):
        put(to, number)


def put(to: Output, number: int) -> None:
    to.put_line(f"message {number:090}\n".encode(), important=False)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/full")
def test_what_cannot_be_written_is_told_when_it_can_again(pipe: Pipe) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    to = Output(full, Shared(LIMIT), told)
    for number in range(3):
        put(to, number)
    to.flush(5)
    os.dup2(pipe.writer, full)
    put(to, 3)
    lines = pipe.read()
    assert sum(line.startswith("message") for line in lines) == 1
    assert [tally["dropped"] for tally in tallies(lines)] == [3]
    os.close(full)


FORKS = """
import os
from app.chassis.logs import Output, Shared

shared = Shared(100_000)
os.register_at_fork(before=shared.fork, after_in_child=shared.forked)
for letter in b"abcd":
    if not os.fork():
        to = Output(1, shared, str)
        for _ in range(20):
            to.put_line(bytes([letter]) * 50_000 + b"\\n", important=True)
            to.flush(10)
        os._exit(0)
for _ in range(4):
    os.wait()
"""


WRITERS = """
import os
from app.chassis.logs import Output, Shared

shared = Shared(400)
os.register_at_fork(before=shared.fork, after_in_child=shared.forked)
for _ in range(4):
    if not os.fork():
        to = Output(1, shared, str)
        for _ in range(99):
            to.put_line(b"message\\n", important=False)
        to.flush(10)
        os._exit(0)
for _ in range(4):
    os.wait()
print(sum(shared.untold()), flush=True)
"""


def test_a_window_with_room_refuses_no_process() -> None:
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", WRITERS], stdout=subprocess.PIPE, check=True, timeout=60
        )
        assert done.stdout.decode().split() == ["message"] * 4 * 99 + ["0"]


@pytest.mark.long
def test_no_second_has_more_lines_of_several_processes_than_the_window(pipe: Pipe) -> None:
    shared, many = Shared(400), 400
    first, second = (Output(pipe.writer, shared, told) for _ in range(2))
    begin = time.monotonic()
    for _ in range(many):  # each of them sees a window with room for nearly all of its lines
        put(first, 0)
        put(second, 0)
    lines = pipe.read()
    written = sum(line.startswith("message") for line in lines)
    assert written + sum(tally["other_lines"] for tally in tallies(lines)) == 2 * many
    most = shared.usual.lines
    later = [one for one in shared.usual.cells[:most] if one >= begin + SPAN]
    assert written > most
    assert len(later) >= written - most


def test_a_second_that_other_processes_have_filled_has_room_for_no_line(pipe: Pipe) -> None:
    shared = Shared(LIMIT)
    to = Output(pipe.writer, shared, told)
    for _ in range(LIMIT):
        shared.usual.note(time.monotonic())
    put(to, 0)
    to.put_request(REQUEST, lambda _: "request")
    counts = shared.untold()
    assert (counts[LINES], counts[STATUS + 200]) == (1, 1)


@pytest.mark.long
def test_requests_of_several_processes_leave_room_for_other_lines(pipe: Pipe) -> None:
    shared = Shared(LIMIT)
    first, second, third = (Output(pipe.writer, shared, told) for _ in range(3))
    for _ in range(LIMIT):  # each of them sees a window with room for nearly all of its lines
        first.put_request(REQUEST, lambda _: "request")
        second.put_request(REQUEST, lambda _: "request")
    while shared.usual.taken < LIMIT - LEFT:
        time.sleep(LINGER)
    third.put_line(b"another line\n", important=False)
    assert "another line" in pipe.read()


@pytest.mark.long
def test_lines_of_several_seconds_that_nobody_read_are_all_written(pipe: Pipe) -> None:
    shared = Shared(LIMIT)
    first, second = (Output(pipe.writer, shared, told) for _ in range(2))
    pipe.fill()
    for _ in range(2):
        for _ in range(40):  # so that both together stay below IMPORTANT_LINES in each second
            first.put_line(b"a warning\n", important=True)
            second.put_line(b"a warning\n", important=True)
        time.sleep(SPAN)
    assert pipe.read() == ["a warning"] * 160


def test_long_lines_of_several_processes_do_not_mix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS], stdout=subprocess.PIPE, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 80
    assert {(len(line), len(set(line))) for line in lines} == {(50_000, 1)}


@pytest.mark.long
def test_what_is_printed_is_written_line_by_line(pipe: Pipe) -> None:
    to = Output(pipe.writer, Shared(LIMIT), told)
    stream = printed(to, pipe.writer, important=False)
    print("one\ntwo", file=stream)
    print("th", end="", file=stream, flush=True)
    print("ree", file=stream)
    stream.buffer.write(b"four\n")
    stream.flush()
    assert stream.fileno() == pipe.writer
    assert pipe.read() == ["one", "two", "three", "four"]


@pytest.mark.long
def test_what_stderr_has_no_room_for_is_told_in_the_log(pipe: Pipe) -> None:
    other = Pipe()
    to = Output(pipe.writer, Shared(LIMIT), told)
    stream = printed(to, other.writer, important=True)
    for number in range(IMPORTANT_LINES + 1):
        print(number, file=stream)
    (tally,) = tallies(pipe.read())
    assert tally["warnings"] == 1
    assert len(other.read()) == IMPORTANT_LINES
    other.close()


def test_nothing_is_captured_where_a_test_does_so_already() -> None:
    logs.capture("json", LIMIT)
    assert not logs.outputs


@pytest.mark.parametrize("milliseconds", [0.01, 0.5, 1.0, 75.0, 20_000.0])
def test_a_percentile_is_off_by_a_twentieth_at_most(milliseconds: float) -> None:
    durations = [0] * (WIDTH - DURATION)
    durations[bucket(milliseconds)] = 10
    assert milliseconds <= percentile(durations, 0.5) * 1.001
    assert percentile(durations, 0.99) <= milliseconds * 1.06
