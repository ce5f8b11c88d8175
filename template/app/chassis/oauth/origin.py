# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Middleware that lets only the service's own and listed pages change something.

A browser sends the session's cookie along with every request that a page makes. SameSite keeps it
from other sites, but not from other hosts and ports of the same site. The header Origin tells
which page has made the request.
"""

from collections.abc import Iterable
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.chassis.http import FOREIGN_PAGE, is_from, problem

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class OriginCheck:
    """Middleware that refuses foreign requests that carry the cookie and may change something."""

    def __init__(self, app: ASGIApp, cookie: str, origins: Iterable[str]) -> None:
        self.app = app
        self.cookie = cookie
        # The entry "*" lets anybody call, but nobody with the cookie
        self.origins = frozenset(origin.lower() for origin in origins if origin not in {"", "*"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.allows(HTTPConnection(scope)):
            await self.app(scope, receive, send)
        else:
            await problem(403, FOREIGN_PAGE)(scope, receive, send)

    def allows(self, connection: HTTPConnection) -> bool:
        if connection.scope.get("method") in SAFE_METHODS or self.cookie not in connection.cookies:
            return True
        return is_from(connection, self.origins)
