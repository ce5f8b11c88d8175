"""WebSockets with a real server, before and after the library for them is there."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import tool
from support.service import DEADLINE, Service, router_added

pytestmark = pytest.mark.long

ROUTES = """
from fastapi import APIRouter, WebSocket

router = APIRouter()


@router.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"{websocket.url.scheme} {websocket.client.host}")
    await websocket.close()


@router.websocket("/broken")
async def broken(_: WebSocket) -> None:
    raise RuntimeError


@router.websocket("/silent")
async def silent(_: WebSocket) -> None:
    pass
"""

EDGE = {"X-Real-IP": "198.51.100.4", "X-Forwarded-Proto": "https"}


def shake_hands(service: Service, path: str, **headers: str) -> tuple[int, str, bytes]:
    """The status, the headers in lower case, and everything after them."""
    lines = {
        "Host": "localhost",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **EDGE,
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with socket.create_connection(("127.0.0.1", service.port), DEADLINE) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        answer = b""
        while (piece := connection.recv(65536)) and b"\x88\x02\x03\xe8" not in answer + piece:
            answer += piece
        head_, _, rest = (answer + piece).partition(b"\r\n\r\n")
    return int(head_.split()[1]), head_.decode().lower(), rest


def test_websockets(installed: Callable[..., Path], tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(installed(), project, ignore=shutil.ignore_patterns(".venv"))
    subprocess.run([tool("uv"), "sync", "--quiet"], cwd=project, check=True, timeout=600)
    variables = {
        "LOG_FORMAT": "json",
        "TRUSTED_PROXIES": "127.0.0.1",
        "CORS_ORIGINS": "https://app.example.com",
    }
    with router_added(project, "sockets", ROUTES):
        with Service(project, tmp_path / "without", **variables).wait_until_healthy() as service:
            for _ in range(3):
                assert shake_hands(service, "/socket")[0] == 404
            service.wait_for("GET /socket 404")
            assert service.output().count("uv add websockets") == 1
            assert "Unsupported upgrade" not in service.output()

        add = [tool("uv"), "add", "--quiet", "websockets"]
        subprocess.run(add, cwd=project, check=True, timeout=600)
        with Service(project, tmp_path / "with", **variables).wait_until_healthy() as service:
            status, head, sent = shake_hands(
                service, "/socket?token=hunter2", Origin="https://app.example.com"
            )
            assert status == 101
            assert b"wss 198.51.100.4" in sent
            assert "x-request-id: " in head
            expected = {
                "/socket": (403, {"Origin": "https://evil.example"}),
                "/broken": (500, {}),
                "/silent": (500, {}),
            }
            for headers in ({"Content-Length": "3"}, {"Sec-WebSocket-Key": ""}, {"X": 9000 * "a"}):
                status, head, body = shake_hands(service, "/socket", **headers)
                assert status == 400
                assert json.loads(body)["request_id"] in head
            for path, (refusal, headers) in expected.items():
                status, head, body = shake_hands(service, path, **headers)
                assert status == refusal
                assert "cache-control: no-store" in head
                assert json.loads(body)["request_id"] in head
            service.wait_for("GET /silent 500")
            lines = service.entries()
        told = [(line["path"], line["status"], line["client"]) for line in lines if "path" in line]
        wanted = [("/socket", 101), *((path, refusal) for path, (refusal, _) in expected.items())]
        assert [line for line in told if line[0] not in {"/health", "-"}] == [
            (path, status, "198.51.100.4") for path, status in wanted
        ]
        errors = [line["message"] for line in lines if line["level"] == "error"]
        assert errors == ["Unhandled error", "A request was not answered"]
        assert "hunter2" not in service.output()
