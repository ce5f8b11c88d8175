"""Clients that send too much, too slowly or nothing, before there is a request at all."""

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from support.service import DEADLINE, Service

Record = Callable[[str, object], None]

MEMORY_KIB = 1024**2
SOFT_LIMIT_KIB = 150 * 1024
"""What a worker may have taken at most; without a bound one attack takes several times as much."""

MUCH = 100_000_000

GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n\r\n"
POST = b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b'Transfer-Encoding: chunked\r\n\r\nd\r\n{"text": "a"}\r\n'


@pytest.fixture(scope="module")
def service(
    installed: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with a bounded memory."""
    command = ["bash", "-c", f"ulimit -v {MEMORY_KIB} && exec python -m app"]
    directory = tmp_path_factory.mktemp("flooded") / "data"
    with Service(installed(), directory, command, LOG_FORMAT="json") as service:
        yield service.wait_until_healthy()


def send(service: Service, pieces: Iterable[bytes]) -> bytes:
    """Everything that is answered until the connection ends."""
    with socket.create_connection(("127.0.0.1", service.port), DEADLINE) as connection:
        with suppress(ConnectionError):  # refused before the end
            for piece in pieces:
                connection.sendall(piece)
        return b"".join(received(connection))


def received(connection: socket.socket) -> Iterator[bytes]:
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            yield piece


def statuses(answers: bytes) -> list[int]:
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


def repeated(piece: bytes, total: int) -> Iterator[bytes]:
    block = piece * (1_000_000 // len(piece))
    return (block for _ in range(total // len(block)))


def peak(service: Service) -> int:
    """The most memory that the worker has taken so far, in KiB."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    (worker,) = children.read_text().split()
    status = Path(f"/proc/{worker}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


FLOODS = {
    "a value": [GET + b"X: ", *repeated(b"x", MUCH)],
    "a name": [GET, *repeated(b"x", MUCH)],
    "an address": [b"GET /", *repeated(b"x", MUCH)],
    "headers": [GET, *repeated(b"X: x\r\n", 12_000_000)],
    "a trailer": [CHUNKED + b"0\r\nX: ", *repeated(b"x", MUCH)],
    "trailers": [CHUNKED + b"0\r\n", *repeated(b"X: x\r\n", 12_000_000)],
    "a chunk's extension": [CHUNKED + b"1;", *repeated(b"x", MUCH)],
    "no line": [*repeated(b"\r\n", MUCH)],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_headers_without_end(service: Service, flood: str, record_property: Record) -> None:
    started = time.monotonic()

    answer = send(service, FLOODS[flood])

    record_property("seconds", round(time.monotonic() - started, 2))
    record_property("MiB of the worker at most", peak(service) // 1024)
    assert statuses(answer) == [431]
    assert peak(service) < SOFT_LIMIT_KIB
    head, _, body = answer.lower().partition(b"\r\n\r\n")
    for line in (
        b"connection: close",
        b"cache-control: no-store",
        b"content-type: application/json",
        b"x-content-type-options: nosniff",
        b"x-request-id: " + json.loads(body)["request_id"].encode(),
    ):
        assert line in head.splitlines()
    service.wait_for(json.loads(body)["request_id"])
    assert service.client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (GET + b"X: " + b"x" * 32_600 + b"\r\n", 200),
        (GET + b"X: " + b"x" * 32_800 + b"\r\n", 431),
        (GET.replace(b"live", b"live?" + b"x" * 32_600), 200),
        (GET.replace(b"live", b"live?" + b"x" * 32_800), 431),
        (GET + b"X: x\r\n" * 98, 200),
        (GET + b"X: x\r\n" * 100, 431),
    ],
    ids=["32 KB", "more", "an address of 32 KB", "more address", "100 headers", "101 headers"],
)
@pytest.mark.parametrize("size", [1_000_000, 1000], ids=["at once", "in pieces"])
def test_headers_at_the_limit(service: Service, head: bytes, status: int, size: int) -> None:
    request = head + CLOSE

    answer = send(service, (request[at : at + size] for at in range(0, len(request), size)))

    assert statuses(answer) == [status]


def test_headers_after_a_large_body_are_measured_alone(service: Service) -> None:
    body = POST + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000

    assert statuses(send(service, [body + GET, b"X: x\r\n" + CLOSE])) == [422, 200]
    large = b"X: " + b"x" * 40_000
    assert statuses(send(service, [body + GET + large, b"x\r\n" + CLOSE])) == [422, 431]


def test_fields_after_the_body_are_no_headers(service: Service) -> None:
    note = b'd\r\n{"text": "a"}\r\n0\r\nX: x\r\nHost: evil.example\r\n\r\n'
    request = POST + b"Transfer-Encoding: chunked\r\n" + CLOSE + note

    assert statuses(send(service, [request])) == [201]


@pytest.mark.parametrize("requests", [11, 12, 200_000])
def test_pipelined_requests(service: Service, requests: int, record_property: Record) -> None:
    last = [GET + CLOSE] if requests < 100 else []
    before = (GET + b"\r\n" for _ in range(requests - len(last)))
    data = b"".join([*before, *last])

    answers = send(service, [data])

    record_property("MiB of the worker at most", peak(service) // 1024)
    assert statuses(answers) == [200] * min(requests, 11)
    assert peak(service) < SOFT_LIMIT_KIB


SILENCES = {
    "nothing": (b"", []),
    "empty lines": (b"\r\n\r\n", []),
    "half of a request": (GET, [408]),
    "half of the second request": (GET + b"\r\n" + GET, [200, 408]),
}


@pytest.mark.long
def test_headers_that_do_not_come(service: Service) -> None:
    def wait(first: bytes) -> tuple[list[int], float]:
        started = time.monotonic()
        found = statuses(send(service, [first]))
        return found, time.monotonic() - started

    with ThreadPoolExecutor(len(SILENCES)) as pool:
        waited = list(pool.map(wait, (first for first, _ in SILENCES.values())))

    assert [found for found, _ in waited] == [found for _, found in SILENCES.values()]
    assert all(9 < seconds < 30 for _, seconds in waited), waited


def test_hosts_are_not_remembered(service: Service, record_property: Record) -> None:
    for number in range(1000):
        host = f"{number}.".encode() + b"x" * 30_000
        refused = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n" + CLOSE
        assert statuses(send(service, [refused])) == [400]

    record_property("MiB of the worker at most", peak(service) // 1024)
    assert peak(service) < SOFT_LIMIT_KIB


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost@evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET ftp://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ],
)
def test_what_is_no_request(service: Service, data: bytes) -> None:
    answer = send(service, [data])

    assert statuses(answer) == [400]
    assert b"cache-control: no-store" in answer


def test_a_complete_address_of_this_host(service: Service) -> None:
    request = GET.replace(b"/health", b"http://LOCALHOST/health") + CLOSE

    assert statuses(send(service, [request])) == [200]


def test_the_development_server_has_the_same_bounds(
    installed: Callable[..., Path], tmp_path: Path
) -> None:
    command = ["python", "-m", "app", "serve", "--reload"]
    with Service(installed(), tmp_path / "data", command) as service:
        service.wait_until_healthy()
        assert statuses(send(service, FLOODS["a value"])) == [431]
