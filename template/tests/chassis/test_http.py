# Belongs to the template: your own tests go into tests/, beside this directory.
"""Who is calling, what is let in, and what an answer carries."""

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient
from pydantic import BaseModel

from app.main import create_app
from app.settings import Settings

from .databases import make_database

EDGE = ("100.64.0.7", 4711)
STRANGER = ("203.0.113.9", 4711)


class Line(BaseModel):
    text: str


def make_app(settings: Settings, **changes: Any) -> FastAPI:
    make_database(settings.database_path)
    app = create_app(settings.model_copy(update=changes))

    @app.get("/whoami")
    def whoami(request: Request) -> dict[str, str]:
        assert request.client is not None
        return {"client": request.client.host, "scheme": request.url.scheme}

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("password=hunter2")

    @app.get("/refused")
    def refused() -> None:
        raise HTTPException(418, "teapot", {"X-Pot": "tea"})

    @app.post("/lines")
    def add(line: Line) -> str:
        return line.text

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    return app


def caller(app: FastAPI, peer: tuple[str, int] = STRANGER) -> TestClient:
    return TestClient(app, client=peer)


@pytest.mark.parametrize("peer", ["100.64.0.7", "::ffff:100.64.0.7"])
def test_the_edge_says_who_is_calling(settings: Settings, peer: str) -> None:
    app = make_app(settings, trusted_proxies=("100.64.0.0/10",))
    headers = {
        "X-Real-IP": "198.51.100.4",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "6.6.6.6, 100.64.0.7",
    }

    answer = caller(app, (peer, 1)).get("/whoami", headers=headers)

    assert answer.json() == {"client": "198.51.100.4", "scheme": "https"}


def test_nobody_else_is_believed(settings: Settings) -> None:
    app = make_app(settings, trusted_proxies=("100.64.0.0/10",))
    headers = {
        "X-Real-IP": "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "6.6.6.6",
    }

    answer = caller(app).get("/whoami", headers=headers)

    assert answer.json() == {"client": STRANGER[0], "scheme": "http"}


def test_an_ipv4_peer_of_an_ipv6_socket_is_shown_as_ipv4(settings: Settings) -> None:
    answer = caller(make_app(settings), ("::ffff:203.0.113.9", 1)).get("/whoami")

    assert answer.json()["client"] == "203.0.113.9"


@pytest.mark.parametrize("address", ["", "not an address", "1.2.3.4\tx", "999.1.1.1", "fe80::1%x"])
def test_nonsense_from_the_edge_is_not_taken(settings: Settings, address: str) -> None:
    app = make_app(settings, trusted_proxies=("100.64.0.0/10",))
    headers = {"X-Real-IP": address, "X-Forwarded-Proto": "gopher"}

    answer = caller(app, EDGE).get("/whoami", headers=headers)

    assert answer.json() == {"client": EDGE[0], "scheme": "http"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("api.example.com", 200),
        ("API.example.com:443", 200),
        ("healthcheck.railway.app", 200),
        ("x.up.railway.app", 200),
        ("up.railway.app", 400),
        ("evilup.railway.app", 400),
        ("evil.example.com", 400),
        ("api.example.com.evil.org", 400),
        ("", 400),
    ],
)
def test_only_the_listed_hosts_are_answered(settings: Settings, host: str, status: int) -> None:
    hosts = ("api.example.com", "healthcheck.railway.app", "*.up.railway.app")
    app = make_app(settings, allowed_hosts=hosts)

    answer = caller(app).get("/health", headers={"Host": host})

    assert answer.status_code == status
    assert answer.headers["X-Request-ID"]


def test_of_two_hosts_the_first_counts(settings: Settings) -> None:
    app = make_app(settings, allowed_hosts=("api.example.com",))
    hosts = [("Host", "evil.example"), ("Host", "api.example.com")]

    assert caller(app).get("/health", headers=hosts).status_code == 400
    assert caller(app).get("/health", headers=hosts[::-1]).status_code == 200


def test_a_websocket_is_held_to_the_hosts_too(settings: Settings) -> None:
    app = make_app(settings, allowed_hosts=("api.example.com",))

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    client = caller(app)
    with client.websocket_connect("/socket", headers={"Host": "api.example.com"}) as connection:
        assert connection.receive_text() == "hello"
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/socket", headers={"Host": "evil.example"}),
    ):
        pass


def test_the_request_id_is_the_edges_or_a_new_one(client: TestClient) -> None:
    given = client.get("/health/live", headers={"X-Railway-Request-Id": "abc-123"})
    assert given.headers["X-Request-ID"] == "abc-123"

    made = {client.get("/health/live").headers["X-Request-ID"] for _ in range(3)}
    assert len(made) == 3
    evil = client.get("/health/live", headers={"X-Railway-Request-Id": 'x"}\t{"level":"error'})
    assert '"' not in evil.headers["X-Request-ID"]


def test_every_line_of_a_request_carries_its_id(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_app(settings, log_format="json")
    capsys.readouterr()
    caller(app).get("/broken?password=hunter3", headers={"X-Railway-Request-Id": "r1"})

    output = capsys.readouterr().out
    lines = [json.loads(line) for line in output.splitlines()]
    (error,) = (line for line in lines if line["level"] == "error")
    (access,) = (line for line in lines if "path" in line)
    assert error["request_id"] == access["request_id"] == "r1"
    assert "hunter2" in error["exception"]
    assert access["status"] == 500
    assert access["path"] == "/broken"
    assert access["client"] == STRANGER[0]
    assert access["duration_ms"] >= 0
    assert "hunter3" not in json.dumps([error, access])


def test_the_line_of_a_request_is_a_record_like_any_other(settings: Settings) -> None:
    """Whoever brings a formatter or handler of their own finds what every record has."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    kept: list[logging.LogRecord] = []
    keep = Keep()
    app = make_app(settings)
    requests = logging.getLogger("app.request")
    requests.addHandler(keep)
    before = logging.makeLogRecord({})
    try:
        caller(app).get("/whoami")
    finally:
        requests.removeHandler(keep)
    after = logging.makeLogRecord({})

    (record,) = kept
    assert vars(record).keys() >= vars(before).keys()
    assert (record.levelno, record.process) == (logging.INFO, os.getpid())
    for moment in ("created", "relativeCreated"):
        assert getattr(before, moment) <= getattr(record, moment) <= getattr(after, moment)
    form = "%(asctime)s %(levelname)s %(threadName)s %(lineno)d %(path)s %(message)s"
    assert "INFO MainThread 0 /whoami GET /whoami 200 " in logging.Formatter(form).format(record)


def test_an_error_carries_no_internals(settings: Settings) -> None:
    answer = caller(make_app(settings)).get("/broken")

    assert answer.status_code == 500
    assert answer.json() == {
        "detail": "Internal server error",
        "request_id": answer.headers["X-Request-ID"],
    }


def test_errors_are_json_with_the_request_id(settings: Settings) -> None:
    client = caller(make_app(settings))

    refused = client.get("/refused")
    assert refused.status_code == 418
    assert refused.headers["X-Pot"] == "tea"
    assert refused.json() == {"detail": "teapot", "request_id": refused.headers["X-Request-ID"]}
    assert client.get("/missing").json()["detail"] == "Not Found"
    assert client.put("/health").status_code == 405
    invalid = client.post("/lines", json={"text": {"password": "hunter2"}})
    assert invalid.status_code == 422
    assert invalid.json()["detail"][0]["loc"] == ["body", "text"]
    assert "hunter2" not in invalid.text


def test_a_body_over_the_limit_is_refused(settings: Settings) -> None:
    client = caller(make_app(settings, max_body_bytes=100))

    assert client.post("/echo", content=b"x" * 100).json() == 100
    assert client.post("/echo", content=b"x" * 101).status_code == 413
    assert client.post("/lines", json={"text": "x" * 200}).status_code == 413


def test_a_body_without_a_length_is_refused_while_it_is_read(settings: Settings) -> None:
    client = caller(make_app(settings, max_body_bytes=100))

    def body(chunks: int) -> Iterator[bytes]:
        for _ in range(chunks):
            yield b"x" * 10

    assert client.post("/echo", content=body(10)).json() == 100
    assert client.post("/echo", content=body(11)).status_code == 413
    assert client.post("/lines", content=body(11)).status_code == 413


def test_answers_carry_the_security_headers(settings: Settings) -> None:
    app = make_app(
        settings,
        docs_enabled=False,
        environment="production",
        trusted_proxies=("::/0", "0.0.0.0/0"),
    )
    answer = caller(app).get("/health", headers={"X-Forwarded-Proto": "https"})

    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert "server" not in answer.headers
    plain = caller(app).get("/health")
    assert "Strict-Transport-Security" not in plain.headers


@pytest.mark.parametrize("page", ["/docs", "/redoc", "/openapi.json"])
def test_the_documentation_is_a_choice(settings: Settings, page: str) -> None:
    assert caller(make_app(settings, docs_enabled=True)).get(page).status_code == 200
    assert caller(make_app(settings, docs_enabled=False)).get(page).status_code == 404


def preflight(client: TestClient, origin: str) -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return client.options("/lines", headers=headers)


def test_only_the_listed_origins_may_call(settings: Settings) -> None:
    client = caller(make_app(settings, cors_origins=("https://app.example",)))

    assert preflight(client, "https://app.example").status_code == 200
    assert preflight(client, "https://evil.example").status_code == 400
    # an error has to be readable by the page that caused it
    failed = client.get("/broken", headers={"Origin": "https://app.example"})
    assert failed.headers["Access-Control-Allow-Origin"] == "https://app.example"


def test_without_origins_no_page_may_call(settings: Settings) -> None:
    client = caller(make_app(settings, cors_origins=()))

    answer = client.get("/health", headers={"Origin": "https://app.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers
