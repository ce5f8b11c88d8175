# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""FastAPI application with the chassis's middleware, routes and error handlers."""

import logging.config
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DatabaseError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from app.chassis import answers, assembly, health, logs, openapi
from app.chassis.assembly import ChassisSettings
from app.chassis.database import Database, DatabaseBusyError, find_conflict, is_unavailable
from app.chassis.http import Edge, ErrorBoundary, Guard, Ungrouped, problem
from app.chassis.streaming import open_streams
from app.chassis.times import TimeError
from app.chassis.verdict import HealthCheck

logger = logging.getLogger(__name__)


class Lifespan(Protocol):
    """Asynchronous context manager for the service's own start and end."""

    def __call__(self, app: FastAPI) -> AbstractAsyncContextManager[None]: ...


class Application(FastAPI):
    """FastAPI application with the chassis's middleware around the service's own.

    A request passes the edge, CORS, the guard, the features' middleware, and then the service's
    middleware. So the service's middleware sees the real client, and its own answers get the
    headers that all answers get.
    """

    surrounding: Sequence[Middleware] = ()
    """Middleware of the chassis and of the features, the outermost first."""

    entrance: ASGIApp | None = None
    """Whole stack, which is built at the first request, when nothing can be added any more."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with the errors that routes do not describe themselves."""
        made = self.openapi_schema is None
        document = super().openapi()
        if made:
            openapi.complete(document)
        return document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.entrance is None:
            self.entrance = self.build_entrance()
        await self.entrance(scope, receive, send)

    def build_entrance(self) -> ASGIApp:
        """Put the chassis's middleware around FastAPI."""
        for route in self.routes:
            if isinstance(route, Mount) and isinstance(route.app, FastAPI):
                self.share(route.app)
        edge, *inner = self.surrounding
        # The service's own CORS goes outside the guard, because refusals need its headers too
        cors = [one for one in self.user_middleware if is_cors(one)]
        self.user_middleware = [one for one in self.user_middleware if not is_cors(one)]
        entrance: ASGIApp = super().__call__
        for middleware, arguments, options in reversed((edge, *cors, *inner)):
            entrance = middleware(entrance, *arguments, **options)
        return entrance

    def share(self, mounted: FastAPI) -> None:
        """Give a mounted application the database and the error handlers that it lacks.

        Its routes see the mounted application as `request.app`, and not this one.
        """
        for name in set(self.state) - set(mounted.state):
            mounted.state[name] = self.state[name]
        for kind, handler in self.exception_handlers.items():
            if mounted.exception_handlers.get(kind) in {None, *FASTAPIS}:
                mounted.exception_handlers[kind] = handler
        for route in mounted.routes:
            if isinstance(route, Mount) and isinstance(route.app, FastAPI):
                self.share(route.app)

    def build_middleware_stack(self) -> ASGIApp:
        """Build the stack so that errors in the service's middleware are answered as in routes."""
        handlers = dict(self.exception_handlers)
        own = [handlers.pop(key) for key in (500, Exception) if key in handlers]
        boundary = Middleware(ErrorBoundary, self.state.database.end_abandoned, *own[:1])
        added = self.user_middleware
        if added:
            outside = (boundary, Middleware(ExceptionMiddleware, handlers=handlers))
            self.user_middleware = [*outside, *added, Middleware(Ungrouped), boundary]
        else:
            self.user_middleware = [boundary]
        try:
            return super().build_middleware_stack()
        finally:
            self.user_middleware = added


FASTAPIS: Final = frozenset({http_exception_handler, request_validation_exception_handler})
"""Exception handlers that every FastAPI application has by default."""


def is_cors(middleware: Middleware) -> bool:
    return isinstance(middleware.cls, type) and issubclass(middleware.cls, CORSMiddleware)


def create_application(
    settings: ChassisSettings,
    *,
    health_checks: Mapping[str, HealthCheck] | None = None,
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """Return an application with logs, database, health routes and HTTP protection.

    Args:
        settings: The service's settings, also at `app.state.settings`.
        health_checks: The service's own checks for /health, by name.
        lifespan: The service's own start and end. The database is open in between.
    """
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    database = Database(settings.database_path, settings.sqlite_synchronous)
    monitor = assembly.Monitor(settings)

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        with open_streams.stopped_by_signals():
            try:
                async with monitor.watching(), assembly.running(app):
                    if lifespan is None:
                        yield
                    else:
                        async with lifespan(app):
                            yield
            finally:
                database.dispose()

    app = Application(
        title=answers.PROJECT_NAME,
        description=answers.PROJECT_DESCRIPTION,
        version=settings.app_version,
        openapi_url="/openapi.json" if settings.docs_enabled else None,
        lifespan=live,
    )
    app.state.settings = settings
    app.state.database = database
    checks: dict[str, HealthCheck] = {"readers": database.look_at_readers}
    checks |= {**monitor.health_checks, **(health_checks or {})}
    health.add_routes(app, settings, database.file, checks)
    add_error_handlers(app)
    assembly.install(app, settings)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_credentials="*" not in settings.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["X-Request-ID"],
    )
    app.surrounding = [
        Middleware(Edge, settings=settings),
        *[cors] * bool(settings.cors_origins),
        Middleware(Guard, settings=settings),
        *app.user_middleware,  # The features have added these
    ]
    app.user_middleware = []
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Answer errors as JSON with `detail` and the request's id, never with the cause's own text."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            # Starlette names only the methods of the first route that has the path
            path = request.url.path.removeprefix(request.scope.get("root_path", ""))
            headers["Allow"] = ", ".join(openapi.methods(request.app.routes, path))
        if error.status_code in {204, 304}:
            return Response(status_code=error.status_code, headers=headers)
        return problem(error.status_code, error.detail, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # The input is left out, because it may be a password and answers end up in logs
        kept = [{key: item[key] for key in ("type", "loc", "msg")} for item in error.errors()]
        return problem(422, jsonable_encoder(kept))

    @app.exception_handler(DatabaseBusyError)
    @app.exception_handler(PoolTimeoutError)
    async def busy(_: Request, error: Exception) -> JSONResponse:
        logger.warning("The database was busy for too long")
        return problem(503, "The database is busy; try again", {"Retry-After": "1"})

    @app.exception_handler(StatementError)
    async def unstorable(_: Request, error: StatementError) -> JSONResponse:
        if isinstance(error.orig, TimeError):
            return problem(422, str(error.orig))
        raise error

    @app.exception_handler(IntegrityError)
    async def conflicting(_: Request, error: IntegrityError) -> JSONResponse:
        found = find_conflict(error)
        if found is None:
            raise error
        logger.info("The database refused a change: %s", error.orig)
        detail, fields = found
        return problem(409, detail, fields=fields)

    @app.exception_handler(DatabaseError)
    async def unavailable(_: Request, error: DatabaseError) -> JSONResponse:
        if not is_unavailable(error):
            raise error
        logger.error("The database is unavailable: %s", error.orig)
        return problem(503, "The database is unavailable", {"Retry-After": "5"})
