"""Who is calling, what is let in, and what an answer carries."""

import json
import logging
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import WebSocketDenialResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.chassis.http import ip_address
from app.chassis.logs import request_id
from app.main import create_app
from app.settings import Settings

from .databases import make_database

EDGE = ("100.64.0.7", 4711)
STRANGER = ("203.0.113.9", 4711)
PAGE = "https://app.example"


class Line(BaseModel):
    text: str


def make_app(settings: Settings, **changes: Any) -> FastAPI:
    make_database(settings)
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


def assert_complete(answer: httpx.Response) -> None:
    """What every answer carries, each header once."""
    names = [name.lower() for name, _ in answer.headers.multi_items()]
    for name in (
        "x-request-id",
        "x-content-type-options",
        "x-frame-options",
        "referrer-policy",
        "cache-control",
    ):
        assert names.count(name) == 1, name


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


def test_two_hosts_are_refused(settings: Settings) -> None:
    app = make_app(settings)
    hosts = [("Host", "evil.example"), ("Host", "api.example.com")]

    assert caller(app).get("/health", headers=hosts).status_code == 400


@pytest.mark.parametrize("host", ["x:\u00b2", "x:99999", "x y", "u@x", "x/", "[::1]x", "x:1:2"])
def test_a_host_that_is_none_is_refused_everywhere(settings: Settings, host: str) -> None:
    """The address of a redirect is made of it."""
    headers = [(b"Host", host.encode("latin-1"))]

    answer = caller(make_app(settings)).get("/notes/", headers=headers, follow_redirects=False)

    assert answer.status_code == 400


@pytest.mark.long
def test_no_cache_grows_with_what_clients_send(settings: Settings) -> None:
    app = make_app(settings, trusted_proxies=("100.64.0.0/10",))
    client = caller(app, EDGE)
    ip_address.cache_clear()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200):
            long = f"{number}" + "1" * 30_000
            client.get("/health/live", headers={"Host": long, "X-Real-IP": long})
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 4_000_000


@pytest.mark.parametrize("length", ["9" * 30, "0" * 5000 + "101", "101"])
def test_an_announced_length_of_any_form_is_held_to_the_limit(
    settings: Settings, length: str
) -> None:
    client = caller(make_app(settings, max_body_bytes=100))

    answer = client.post("/echo", content=b"", headers={"Content-Length": length})

    assert answer.status_code == 413


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


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("", 101),
        (PAGE, 101),
        ("https://api.example", 101),
        ("https://own.example", 101),
        ("http://own.example", 403),
        ("https://own.example:8443", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
def test_only_pages_that_may_call_open_a_websocket(
    settings: Settings, origin: str, status: int
) -> None:
    app = make_app(
        settings,
        cors_origins=(PAGE,),
        backend_url="https://api.example",
        trusted_proxies=("100.64.0.0/10",),
    )

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    headers = {"Host": "own.example", "X-Forwarded-Proto": "https"}
    headers |= {"Origin": origin} if origin else {}
    asked = caller(app, EDGE).websocket_connect("/socket", headers=headers)
    if status == 101:
        with asked:
            return
    with pytest.raises(WebSocketDenialResponse) as refused:
        asked.__enter__()
    assert refused.value.status_code == status
    assert_complete(refused.value)


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "Forwarded", "X-Original-Host"])
def test_a_redirect_goes_to_the_host_that_was_asked(settings: Settings, name: str) -> None:
    app = make_app(settings, trusted_proxies=("100.64.0.0/10",), allowed_hosts=("api.example.com",))
    headers = {
        "Host": "api.example.com",
        "X-Forwarded-Proto": "https",
        name: "host=evil.example" if name == "Forwarded" else "evil.example",
    }

    answer = caller(app, EDGE).get("/whoami/", headers=headers, follow_redirects=False)

    assert answer.headers["Location"] == "https://api.example.com/whoami"
    assert_complete(answer)


def test_a_handshake_is_treated_like_a_request(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_app(settings, trusted_proxies=("100.64.0.0/10",), log_format="json")

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        assert websocket.client is not None
        await websocket.accept()
        await websocket.send_json([websocket.url.scheme, websocket.client.host, request_id.get()])
        await websocket.close()

    @app.websocket("/broken-socket")
    async def broken(_: WebSocket) -> None:
        raise RuntimeError("password=hunter2")

    client = caller(app, EDGE)
    headers = {"X-Real-IP": "198.51.100.4", "X-Forwarded-Proto": "https"}
    capsys.readouterr()
    with client.websocket_connect("/socket", headers=headers) as connection:
        scheme, host, identifier = connection.receive_json()
        assert (scheme, host) == ("wss", "198.51.100.4")
        accepted: dict[bytes, bytes] = dict(connection.extra_headers or [])
        assert accepted[b"x-request-id"].decode() == identifier
    with pytest.raises(WebSocketDenialResponse) as refused:
        client.websocket_connect("/socket", headers={"Host": "a b"}).__enter__()
    assert refused.value.status_code == 400
    assert_complete(refused.value)
    with pytest.raises(WebSocketDenialResponse) as failed:
        client.websocket_connect("/broken-socket").__enter__()
    assert failed.value.status_code == 500
    assert_complete(failed.value)

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines if "path" in line] == [101, 400, 500]


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


def test_a_frontend_says_what_its_pages_may_load(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<script src=app.js></script>")
    policy = "default-src 'self'; frame-ancestors 'none'"
    app = make_app(
        settings, environment="production", docs_enabled=False, content_security_policy=policy
    )

    @app.get("/own")
    def own() -> Response:
        return Response(headers={"Content-Security-Policy": "default-src *"})

    app.mount("/", StaticFiles(directory=tmp_path, html=True))
    page = caller(app).get("/index.html")

    assert page.headers.get_list("Content-Security-Policy") == [policy]
    assert page.headers["Cache-Control"] == "no-cache"
    assert page.headers["ETag"]
    assert caller(app).get("/own").headers.get_list("Content-Security-Policy") == ["default-src *"]


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


class Probe:
    """A service's own middleware: it notes what it sees, and does what a header asks for."""

    def __init__(self, app: ASGIApp, seen: list[dict[str, Any]]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        self.seen.append(
            {
                "client": scope["client"][0],
                "scheme": scope["scheme"],
                "host": request.headers["host"],
                "id": request_id.get(),
            }
        )
        match request.headers.get("x-do"):
            case "answer":
                await JSONResponse({}, 429)(scope, receive, send)
            case "raise":
                raise RuntimeError("password=hunter2")
            case "refuse":
                raise HTTPException(401, "Who are you?")
            case "read":
                await request.body()
            case "nothing":
                return
            case _:
                await self.app(scope, receive, send)


def make_probed(settings: Settings, seen: list[dict[str, Any]]) -> FastAPI:
    app = make_app(
        settings,
        trusted_proxies=("100.64.0.0/10",),
        allowed_hosts=("api.example.com",),
        cors_origins=(PAGE,),
        max_body_bytes=100,
        log_format="json",
    )
    app.add_middleware(Probe, seen=seen)
    return app


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """Ask as a page does, through the edge."""
    headers = {
        "Host": "api.example.com",
        "Origin": PAGE,
        "X-Real-IP": "198.51.100.4",
        "X-Forwarded-Proto": "https",
        **options.pop("headers", {}),
    }
    return caller(app, EDGE).request(method, path, headers=headers, **options)


def test_the_services_middleware_sees_what_routes_see(settings: Settings) -> None:
    seen: list[dict[str, Any]] = []
    probed = make_probed(settings, seen)

    answer = ask(probed, "GET", "/health/live")
    ask(probed, "GET", "/health/live", headers={"Host": "evil.example"})

    expected = {"client": "198.51.100.4", "scheme": "https", "host": "api.example.com"}
    assert seen == [{**expected, "id": answer.headers["X-Request-ID"]}]


def chunked() -> Iterator[bytes]:
    for _ in range(20):
        yield b"x" * 10


ANSWERS: dict[str, tuple[int, dict[str, Any]]] = {
    "middleware that answers": (429, {"headers": {"X-Do": "answer"}}),
    "middleware that raises": (500, {"headers": {"X-Do": "raise"}}),
    "middleware that refuses": (401, {"headers": {"X-Do": "refuse"}}),
    "middleware that does not answer": (500, {"headers": {"X-Do": "nothing"}}),
    "middleware that reads too much": (413, {"headers": {"X-Do": "read"}, "content": chunked}),
    "an announced body": (413, {"content": b"x" * 200}),
    "a body in chunks": (413, {"content": chunked}),
    "a host": (400, {"headers": {"Host": "evil.example"}}),
    "a route": (200, {}),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_every_answer_is_complete(
    settings: Settings, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    probed = make_probed(settings, [])
    status, options = ANSWERS[case]
    content = options.get("content")
    options = {**options, "content": content() if callable(content) else content}
    capsys.readouterr()

    answer = ask(probed, "POST", "/echo", **options)

    assert answer.status_code == status
    assert_complete(answer)
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Cache-Control"] == "no-store"
    assert "hunter2" not in answer.text
    if status == 413:
        assert answer.json()["detail"].startswith("The request body is larger than 100 bytes")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (line,) = (line for line in lines if "path" in line)
    assert (line["status"], line["client"]) == (status, "198.51.100.4")
    assert line["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("path", ["/echo", "/lines"])
def test_a_body_that_is_too_large_is_said_so_behind_any_middleware(
    settings: Settings, path: str
) -> None:
    probed = make_probed(settings, [])

    @probed.middleware("http")
    async def pass_on(request: Request, call_next: Any) -> Response:
        answer: Response = await call_next(request)
        return answer

    answer = ask(probed, "POST", path, content=chunked())

    assert answer.status_code == 413
    assert_complete(answer)


def test_errors_of_routes_reach_the_services_middleware_as_answers(settings: Settings) -> None:
    app = make_app(settings)
    statuses = []

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        answer: Response = await call_next(request)
        statuses.append(answer.status_code)
        return answer

    class Again(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            answer: Response = await call_next(request)
            answer.headers["X-Id-Inside"] = request_id.get()
            return answer

    app.add_middleware(Again)
    answer = caller(app).get("/broken")

    assert statuses == [500]
    assert answer.headers["X-Id-Inside"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("key", [Exception, 500])
@pytest.mark.parametrize("broken", [False, True], ids=["", "which raises"])
def test_a_services_handler_of_all_errors_makes_the_answer(
    settings: Settings, key: Any, broken: bool
) -> None:
    app = make_app(settings, cors_origins=(PAGE,))

    @app.exception_handler(key)
    async def sorry(_: Request, __: Exception) -> Response:
        if broken:
            raise RuntimeError
        return PlainTextResponse("Sorry", 500)

    answer = caller(app).get("/broken", headers={"Origin": PAGE})

    assert answer.status_code == 500
    assert (answer.text == "Sorry") is not broken
    assert_complete(answer)
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE


def test_a_mounted_application_is_inside_too(settings: Settings) -> None:
    app = make_app(settings, cors_origins=(PAGE,))
    inner = FastAPI()

    @inner.get("/broken")
    def broken() -> None:
        raise RuntimeError

    app.mount("/inner", inner)
    for path, status in {"/inner/broken": 500, "/inner/missing": 404}.items():
        answer = caller(app).get(path, headers={"Origin": PAGE})
        assert answer.status_code == status
        assert_complete(answer)
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE


def test_a_services_own_cors_is_asked_first_and_covers_refusals(settings: Settings) -> None:
    app = make_app(settings, cors_origins=(PAGE,), max_body_bytes=100)
    app.add_middleware(CORSMiddleware, allow_origin_regex=".*", allow_methods=["POST"])

    other = "https://other.example"
    for origin in (other, PAGE):
        headers = {"Origin": origin}
        assert preflight(caller(app), origin).headers["Access-Control-Allow-Origin"] == origin
        refused = caller(app).post("/echo", content=b"x" * 101, headers=headers)
        assert refused.status_code == 413
        assert refused.headers.get_list("Access-Control-Allow-Origin") == [origin]


def test_what_may_be_kept_says_so_and_nothing_else_is(settings: Settings, tmp_path: Path) -> None:
    app = make_app(settings)
    (tmp_path / "sheet.html").write_text("<p>")
    app.mount("/static", StaticFiles(directory=tmp_path))

    @app.get("/explicit")
    def explicit() -> Response:
        return Response(headers={"Cache-Control": "public, max-age=60", "ETag": '"1"'})

    @app.get("/file")
    def file() -> Response:
        return FileResponse(tmp_path / "sheet.html")

    @app.get("/signed-in")
    def signed_in() -> Response:
        return Response(headers={"Set-Cookie": "a=b", "ETag": '"1"'})

    @app.get("/own")
    def own() -> Response:
        return Response(headers={"X-Frame-Options": "SAMEORIGIN", "X-Request-ID": "theirs"})

    client = caller(app)
    for path in ("/health", "/docs", "/openapi.json", "/missing", "/notes", "/signed-in"):
        assert client.get(path).headers.get_list("Cache-Control") == ["no-store"], path
    page = client.get("/static/sheet.html")
    assert page.headers.get_list("Cache-Control") == ["no-cache"]
    again = client.get("/static/sheet.html", headers={"If-None-Match": page.headers["ETag"]})
    assert (again.status_code, again.headers["Cache-Control"]) == (304, "no-cache")
    assert client.get("/file").headers["Cache-Control"] == "no-cache"
    assert client.get("/explicit").headers.get_list("Cache-Control") == ["public, max-age=60"]
    answer = client.get("/own")
    assert_complete(answer)
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer.headers["X-Request-ID"] != "theirs"
