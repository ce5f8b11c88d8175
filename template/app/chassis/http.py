# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""What happens to every request, in one pass over its headers.

Plain ASGI, because BaseHTTPMiddleware costs a task a request and gets in the way of streams.
"""

import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.chassis.logs import RequestRecord, request_id
from app.chassis.sessions import add_right_way
from app.chassis.settings import ChassisSettings

logger = logging.getLogger("app.request")

REQUEST_ID_FORM: Final = re.compile(rb"[A-Za-z0-9._:+/=-]{1,128}")

MAPPED: Final = "::ffff:"
"""How a socket that listens on IPv6 begins the address of an IPv4 peer."""

SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
CONTENT_POLICY: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
TRANSPORT_SECURITY: Final = (b"strict-transport-security", b"max-age=31536000")


class Gate:
    """Client address, request id, allowed hosts, body limit, headers and access log.

    Args:
        app: The application.
        settings: allowed_hosts, trusted_proxies, max_body_bytes, docs_enabled, production.
    """

    def __init__(self, app: ASGIApp, settings: ChassisSettings) -> None:
        self.app = app
        self.max_body = settings.max_body_bytes
        self.is_proxy = proxy_test(settings.trusted_proxies)
        self.is_allowed = host_test(settings.allowed_hosts)
        # The documentation pages load scripts from elsewhere.
        self.policy = [] if settings.docs_enabled else [CONTENT_POLICY]
        self.headers = SECURITY_HEADERS
        self.https_headers = (*SECURITY_HEADERS, *[TRANSPORT_SECURITY] * settings.production)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        # Of a header that comes twice the first counts, as it does for the application.
        found = dict(reversed(scope["headers"]))
        self.apply_proxy(scope, found)
        if scope["type"] == "websocket":
            if self.allows_host(found):
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        started = time.perf_counter()
        identifier = choose_request_id(found.get(b"x-railway-request-id"))
        token = request_id.set(identifier)
        headers = self.https_headers if scope["scheme"] == "https" else self.headers
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = message.get("headers", ())
                message["headers"] = [*own, (b"x-request-id", identifier.encode()), *headers]
                # a page that is served here says itself what it may load
                if CONTENT_POLICY[0] not in dict(own):
                    message["headers"] += self.policy
            await send(message)

        try:
            if refusal := self.refuse(found):
                await refusal(scope, receive, send_with_headers)
            else:
                await self.app(scope, limited(receive, self.max_body), send_with_headers)
        finally:
            log_request(scope, status, time.perf_counter() - started)
            request_id.reset(token)

    def apply_proxy(self, scope: Scope, found: dict[bytes, bytes]) -> None:
        """Take the client and scheme from the edge's headers, if the edge sent them.

        X-Forwarded-For is never read: its first entry is whatever the client wrote.
        """
        if scope["client"] is None:
            return
        peer = scope["client"][0]
        scope["client"] = (peer.removeprefix(MAPPED), scope["client"][1])
        if not self.is_proxy(peer):
            return
        address = found.get(b"x-real-ip", b"").decode("latin-1").strip()
        if is_address(address):
            scope["client"] = (address, 0)
        scheme = found.get(b"x-forwarded-proto", b"").decode("latin-1").strip().lower()
        if scheme in {"http", "https"} and scope["type"] == "http":
            scope["scheme"] = scheme

    def allows_host(self, found: dict[bytes, bytes]) -> bool:
        return self.is_allowed(found.get(b"host", b"").decode("latin-1"))

    def refuse(self, found: dict[bytes, bytes]) -> JSONResponse | None:
        """The answer to a request that does not get as far as the application."""
        if not self.allows_host(found):
            return problem(400, "This host is not served here; see ALLOWED_HOSTS")
        length = found.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return problem(413, too_large(self.max_body))
        return None


class ErrorBoundary:
    """Answer what nothing else has handled, and log it; the answer carries no internals.

    The start of a response waits for its first byte, so that a stream that cannot begin is a 500;
    that of an event stream does not, because its first event may be long in coming. Starlette's
    own is outside of every other middleware, so that its answer would lack the headers that
    CORSMiddleware and Gate add.

    Args:
        app: The application.
        cut_short: Called after a response that was begun and not finished.
    """

    def __init__(self, app: ASGIApp, cut_short: Callable[[], None]) -> None:
        self.app = app
        self.cut_short = cut_short

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = finished = False
        start: Message | None = None

        async def send_from_first_byte(message: Message) -> None:
            nonlocal started, finished, start
            if message["type"] == "http.response.start" and not is_event_stream(message):
                start = message
                return
            started = True
            finished = not message.get("more_body", False)
            if start is not None:
                held, start = start, None
                await send(held)
            await send(message)

        try:
            await self.app(scope, receive, send_from_first_byte)
        except Exception as error:
            if scope["type"] != "http":
                raise
            add_right_way(error)
            logger.exception("Unhandled error")
            if started:
                raise  # too late for an answer: the server closes the connection
            await problem(500, "Internal server error")(scope, receive, send)
        finally:
            if started and not finished:
                self.cut_short()


def is_event_stream(start: Message) -> bool:
    kind: bytes = dict(start.get("headers", ())).get(b"content-type", b"")
    return kind.startswith(b"text/event-stream")


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the form that FastAPI's own have, with the request's id for the logs."""
    content = {"detail": detail, "request_id": request_id.get()}
    return JSONResponse(content, status_code=status, headers=headers)


def too_large(limit: int) -> str:
    return f"The request body is larger than {limit} bytes; see MAX_BODY_BYTES"


def limited(receive: Receive, limit: int) -> Receive:
    """Stop reading a body, of whatever announced length, that grows past the limit."""
    total = 0

    async def receive_limited() -> Message:
        nonlocal total
        message = await receive()
        if message["type"] == "http.request":
            total += len(message.get("body", b""))
            if total > limit:
                raise HTTPException(413, too_large(limit))
        return message

    return receive_limited


def choose_request_id(given: bytes | None) -> str:
    """The edge's id for the request if it has one that is safe to log, else a new one."""
    if given and REQUEST_ID_FORM.fullmatch(given):
        return given.decode()
    return os.urandom(16).hex()


@lru_cache(maxsize=1024)
def is_address(value: str) -> bool:
    """Whether this is an IP address; one with a zone, which may be any text, is none here."""
    if "%" in value:
        return False
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def proxy_test(networks: Iterable[str]) -> Callable[[str], bool]:
    """A cached test whether an address belongs to one of the networks.

    A socket that listens on IPv6 shows IPv4 peers as ::ffff:a.b.c.d; they count as IPv4.
    """
    trusted = [ipaddress.ip_network(network) for network in networks]

    @lru_cache(maxsize=1024)
    def is_proxy(peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in trusted)

    return is_proxy


def host_test(allowed: Iterable[str]) -> Callable[[str], bool]:
    """A cached test whether a Host header is allowed; `*.example.com` allows all below."""
    names = frozenset(allowed)
    suffixes = tuple(name[1:] for name in names if name.startswith("*."))

    @lru_cache(maxsize=1024)
    def is_allowed(header: str) -> bool:
        host = header.lower()
        if not host.endswith("]"):
            name, colon, port = host.rpartition(":")
            host = name if colon and port.isdigit() else host
        return "*" in names or host in names or host.endswith(suffixes)

    return is_allowed


def log_request(scope: Scope, status: int, seconds: float) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    client = scope["client"]
    method = scope["method"]
    path = scope["raw_path"].decode("latin-1")  # still encoded: it cannot break the line
    duration = round(seconds * 1000, 2)
    address = client[0] if client else ""
    logger.handle(RequestRecord(logger.name, method, path, status, duration, address))
