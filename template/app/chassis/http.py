# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Middleware that identifies clients, refuses requests, and completes every answer.

It is plain ASGI, because BaseHTTPMiddleware costs a task a request and gets in the way of streams.
"""

import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import Any, Final

from starlette.background import BackgroundTasks
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from app.chassis.logs import RequestRecord, request_id
from app.chassis.sessions import add_right_way
from app.chassis.settings import CoreSettings

logger = logging.getLogger("app.request")

Header = tuple[bytes, bytes]

REQUEST_ID_FORM: Final = re.compile(rb"[A-Za-z0-9._:+/=-]{1,128}")

# https://www.rfc-editor.org/rfc/rfc9110#section-7.2
HOST_FORM: Final = re.compile(rb"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]*))?")
LONGEST_HOST: Final = 261  # Bytes of a name of 255 and a port
LAST_PORT: Final = 65535
LONGEST_ADDRESS: Final = 45  # Characters of IPv6 with an IPv4 address at its end
LONGEST_LENGTH: Final = 19  # Digits of a Content-Length that are converted to a number
MAPPED: Final = "::ffff:"  # Prefix of an IPv4 peer's address on a socket that listens on IPv6

STARTS: Final = {
    "http.response.start": 0,
    "websocket.http.response.start": 0,
    "websocket.accept": 101,
    "websocket.close": 403,
}
"""Messages that can begin an answer, with its status if the message names none."""

SECURE: Final = {b"http": False, b"ws": False, b"https": True, b"wss": True}

REQUEST_ID: Final = b"x-request-id"
CACHE_CONTROL: Final = b"cache-control"
SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
CONTENT_POLICY: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
TRANSPORT_SECURITY: Final = (b"strict-transport-security", b"max-age=31536000")

FOREIGN_PAGE: Final = "This page may not do that: its Origin is not in CORS_ORIGINS"


class Edge:
    """Middleware for client address, request id, headers of every answer, and access log."""

    def __init__(self, app: ASGIApp, settings: CoreSettings) -> None:
        self.app = app
        self.proxies = [ipaddress.ip_network(network) for network in settings.trusted_proxies]
        self.is_proxy = lru_cache(maxsize=1024)(self.look_for_proxy)
        policy: tuple[Header, ...] = (CONTENT_POLICY,)
        if settings.content_security_policy:
            policy = ((CONTENT_POLICY[0], settings.content_security_policy.encode()),)
        elif settings.docs_enabled:
            policy = ()  # The documentation pages load scripts from elsewhere
        self.headers = (*SECURITY_HEADERS, *policy)
        self.https_headers = (*self.headers, *[TRANSPORT_SECURITY] * settings.production)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        # If a header comes twice, the first one counts, as it does for the application
        found = dict(reversed(scope["headers"]))
        self.apply_proxy(scope, found)
        identifier = choose_request_id(found.get(b"x-railway-request-id"))
        token = request_id.set(identifier)
        headers = self.https_headers if scope["scheme"] in {"https", "wss"} else self.headers
        # The values are read now, because the application may change the scope
        line = scope.get("method", "GET"), scope["raw_path"], scope["client"]
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] in STARTS and not status:
                status = message.get("status") or STARTS[message["type"]]
                own = message.get("headers", ())
                message = {**message, "headers": completed(own, identifier, headers)}
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            log_request(*line, status, time.perf_counter() - started)
            request_id.reset(token)

    def apply_proxy(self, scope: Scope, found: dict[bytes, bytes]) -> None:
        """Take the client and scheme from the edge's headers, if the edge sent them.

        X-Forwarded-For is never read, because its first entry is whatever the client wrote.
        """
        if scope["client"] is None:
            return
        peer = scope["client"][0]
        scope["client"] = (peer.removeprefix(MAPPED), scope["client"][1])
        if not self.is_proxy(peer):
            return
        address = found.get(b"x-real-ip", b"").decode("latin-1").strip()
        # A zone may be any text, so none is allowed here. The cache must only keep short texts.
        if len(address) <= LONGEST_ADDRESS and "%" not in address and ip_address(address):
            scope["client"] = (address, 0)
        secure = SECURE.get(found.get(b"x-forwarded-proto", b"").strip().lower())
        if secure is not None:
            scheme = "http" if scope["type"] == "http" else "ws"
            scope["scheme"] = f"{scheme}s" if secure else scheme

    def look_for_proxy(self, peer: str) -> bool:
        address = ip_address(peer)
        return address is not None and any(address in network for network in self.proxies)


class Guard:
    """Middleware that refuses unknown hosts, too large bodies, and other pages' WebSockets.

    A browser opens a WebSocket for any page. It does not ask the service first, unlike with CORS.
    """

    def __init__(self, app: ASGIApp, settings: CoreSettings) -> None:
        self.app = app
        self.max_body = settings.max_body_bytes
        self.too_large = (
            f"The request body is larger than {self.max_body} bytes; see MAX_BODY_BYTES"
        )
        self.hosts = frozenset(settings.allowed_hosts)
        self.domains = tuple(host[1:] for host in self.hosts if host.startswith("*."))
        self.is_served = lru_cache(maxsize=1024)(self.look_for_host)
        origins = (settings.backend_url, *settings.cors_origins)
        self.origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif refusal := self.refuse(scope):
            if is_answerable(scope):
                await refusal(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, self.limited(receive), send)

    def refuse(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a request that is refused, or None."""
        hosts = []
        large = False
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"content-length":
                large = large or is_larger(value, self.max_body)
        # If there are two Host headers, a proxy may have used the other one. The cache must only
        # keep short headers.
        if len(hosts) != 1 or len(hosts[0]) > LONGEST_HOST or not self.is_served(hosts[0]):
            return problem(400, "This host is not served here; see ALLOWED_HOSTS")
        if scope["type"] == "websocket" and not self.allows_socket(HTTPConnection(scope)):
            return problem(403, FOREIGN_PAGE)
        return problem(413, self.too_large) if large else None

    def look_for_host(self, header: bytes) -> bool:
        """Return whether a Host header is allowed. `*.example.com` allows all names below it."""
        form = HOST_FORM.fullmatch(header)
        if form is None or int(form[2] or 0) > LAST_PORT:
            return False
        host = form[1].decode().lower()
        return "*" in self.hosts or host in self.hosts or host.endswith(self.domains)

    def allows_socket(self, connection: HTTPConnection) -> bool:
        """Return whether a page may open a WebSocket. Only browsers send an origin."""
        if "*" in self.origins or not connection.headers.get("origin"):
            return True
        return is_from(connection, self.origins)

    def limited(self, receive: Receive) -> Receive:
        """Stop reading a body that grows past the limit, whatever length it has announced."""
        total = 0

        async def receive_limited() -> Message:
            nonlocal total
            message = await receive()
            if message["type"] == "http.request":
                total += len(message.get("body", b""))
                if total > self.max_body:
                    raise HTTPException(413, self.too_large)
            return message

        return receive_limited


class ErrorBoundary:
    """Middleware that answers and logs errors that nothing else has handled, without internals.

    The start of a response waits for its first byte, so that a stream that cannot begin is a 500.
    The start of an event stream does not wait, because its first event may take long.

    Args:
        app: The application.
        cut_short: Function to call after a response that was begun and not finished.
        handler: The service's own handler of `Exception` or 500, which makes the answer.
    """

    def __init__(
        self, app: ASGIApp, cut_short: Callable[[], None], handler: ExceptionHandler | None = None
    ) -> None:
        self.app = ServerErrorMiddleware(app, handler) if handler else app
        self.cut_short = cut_short

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = ended = False
        start: Message | None = None

        async def send_from_first_byte(message: Message) -> None:
            nonlocal begun, ended, start
            if message["type"] == "http.response.start" and not is_event_stream(message):
                start = message
                return
            begun = begun or start is not None or message["type"] in STARTS
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            if start is not None:
                held, start = start, None
                await send(held)
            await send(message)

        try:
            await self.app(scope, receive, send_from_first_byte)
        except Exception as error:
            add_right_way(error)
            if not ended and (begun or not is_answerable(scope)):
                raise  # It is too late to answer, so the server logs it and closes the connection
            logger.exception("Unhandled error")
        else:
            if begun or not is_answerable(scope):
                return
            logger.error("A request was not answered")
        finally:
            if begun and not ended and scope["type"] == "http":
                self.cut_short()
        if not begun:
            await problem(500, "Internal server error")(scope, receive, send)


class Ungrouped:
    """Middleware that takes errors of reading a body, such as a too large body, out of groups.

    BaseHTTPMiddleware, which a service may have added, puts them into groups that no handler knows.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_ungrouped() -> Message:
            try:
                return await receive()
            except ExceptionGroup as group:
                error: Exception = group
                while isinstance(error, ExceptionGroup):
                    error = error.exceptions[0]
                raise error from None

        await self.app(scope, receive_ungrouped, send)


def is_event_stream(start: Message) -> bool:
    kind: bytes = dict(start.get("headers", ())).get(b"content-type", b"")
    return kind.startswith(b"text/event-stream")


def completed(own: Iterable[Header], identifier: str, ours: Iterable[Header]) -> list[Header]:
    """Return an answer's headers, with those of ours that it lacks."""
    headers = list(own)
    names = {name.lower() for name, _ in headers}
    if REQUEST_ID in names:
        # People can only search the log for our own request id
        headers = [header for header in headers if header[0].lower() != REQUEST_ID]
    headers.append((REQUEST_ID, identifier.encode()))
    headers += [header for header in ours if header[0] not in names]
    if CACHE_CONTROL not in names:
        # A cached copy has to be revalidated, and must not sign anybody in
        kept = b"etag" in names and b"set-cookie" not in names
        headers.append((CACHE_CONTROL, b"no-cache" if kept else b"no-store"))
    return headers


def is_from(connection: HTTPConnection, origins: Collection[str]) -> bool:
    """Return whether a page of these origins, or of the host that was asked, has sent this."""
    origin = connection.headers.get("origin", "").lower()
    host = connection.headers.get("host", "").lower()
    own = {f"https://{host}"}  # A proxy may have removed the encryption
    if connection.scope["scheme"] in {"http", "ws"}:
        own.add(f"http://{host}")
    return origin in origins or (host != "" and origin in own)


def is_answerable(scope: Scope) -> bool:
    """Return whether this is a request, or a handshake that can be answered like one."""
    return scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or ())


def is_larger(length: bytes, limit: int) -> bool:
    """Return whether a Content-Length is above the limit, without converting a very long one."""
    digits = length.strip().lstrip(b"0")
    return len(digits) > LONGEST_LENGTH or (digits.isdigit() and int(digits) > limit)


def problem(
    status: int, detail: str, headers: dict[str, str] | None = None, **more: object
) -> JSONResponse:
    """Return an error in the form of FastAPI's own errors, with the request's id for the logs."""
    content = {"detail": detail, "request_id": request_id.get(), **more}
    return JSONResponse(content, status_code=status, headers=headers)


def choose_request_id(given: bytes | None) -> str:
    """Return the edge's id for the request if it is safe to log, or else a new one."""
    if given and REQUEST_ID_FORM.fullmatch(given):
        return given.decode()
    return os.urandom(16).hex()


@lru_cache(maxsize=1024)
def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address, or None. An IPv4 address that is mapped into IPv6 counts as IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def log_request(
    method: str, raw_path: bytes, client: tuple[str, int] | None, status: int, seconds: float
) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    path = raw_path.decode("latin-1")  # The path is still encoded, so it cannot break the line
    duration = round(seconds * 1000, 2)
    address = client[0] if client else ""
    logger.handle(RequestRecord(logger.name, method, path, status, duration, address))


def remember(values: dict[str, Any]) -> Callable[[], None]:
    """Return a function that undoes what a route has done to its background tasks and response.

    The engine calls the route again after a conflict. Otherwise each try would add its tasks and
    cookies once more, and a later one would find an uploaded file at its end, as if it were empty.
    """
    tasks = [(one, [*one.tasks]) for one in values.values() if isinstance(one, BackgroundTasks)]
    responses = [
        (one, one.status_code, [*one.raw_headers])
        for one in values.values()
        if isinstance(one, Response)
    ]
    given = [
        one for value in values.values() for one in (value if isinstance(value, list) else [value])
    ]
    files = [(one.file, one.file.tell()) for one in given if isinstance(one, UploadFile)]

    def undo() -> None:
        for file, position in files:
            file.seek(position)
        for background, added in tasks:
            background.tasks[:] = added
        for response, status, headers in responses:
            response.status_code = status
            response.raw_headers[:] = headers

    return undo
