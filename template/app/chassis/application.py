# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""FastAPI application with the chassis's middleware, routes and error handlers."""

import asyncio
import logging.config
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from types import FrameType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import IntegrityError, StatementError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Mount
from starlette.types import ASGIApp

from app.chassis import answers, assembly, health, logs, openapi
from app.chassis.assembly import ChassisSettings
from app.chassis.database import DatabaseBusyError, DatabaseUnavailableError
from app.chassis.http import Edge, ErrorBoundary, Guard, Ungrouped, problem
from app.chassis.streaming import open_streams
from app.chassis.times import TimeError

logger = logging.getLogger(__name__)


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
"""Asynchronous context manager for the service's own start and end."""


class Application(FastAPI):
    """FastAPI application with the chassis's middleware around the service's own.

    A request passes the edge, CORS, the guard, the features' middleware, and then the service's
    middleware. So the service's middleware sees the real client, and its own answers get the
    headers that all answers get.
    """

    surrounding: Sequence[Middleware] = ()
    """Middleware of the chassis and of the features, the outermost first."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with the errors that routes do not describe themselves."""
        made = self.openapi_schema is None
        document = super().openapi()
        if made:
            openapi.complete(document)
        return document

    def share(self, outer: FastAPI) -> None:
        """Give the mounted applications the database and the error handlers that they lack.

        Their routes see the mounted application as `request.app`, and not this one.
        """
        replaceable = {None, http_exception_handler, request_validation_exception_handler}
        for route in outer.routes:
            if isinstance(route, Mount) and isinstance(mounted := route.app, FastAPI):
                for name in set(self.state) - set(mounted.state):
                    mounted.state[name] = self.state[name]
                for kind, handler in self.exception_handlers.items():
                    if mounted.exception_handlers.get(kind) in replaceable:
                        mounted.exception_handlers[kind] = handler
                self.share(mounted)

    def build_middleware_stack(self) -> ASGIApp:
        """Build the stack at the first request, when nothing can be added any more.

        Errors in the service's middleware are answered as those in routes.
        """
        self.share(self)
        handlers = dict(self.exception_handlers)
        own = [handlers.pop(key) for key in (500, Exception) if key in handlers]
        boundary = Middleware(ErrorBoundary, self.state.database.readers.end_abandoned, *own[:1])
        given = self.user_middleware
        cors = [
            one
            for one in given
            if isinstance(one.cls, type) and issubclass(one.cls, CORSMiddleware)
        ]
        added = [one for one in given if one not in cors]
        if added:
            outside = (boundary, Middleware(ExceptionMiddleware, handlers=handlers))
            added = [*outside, *added, Middleware(Ungrouped)]
        self.user_middleware = [*added, boundary]
        try:
            stack = super().build_middleware_stack()
        finally:
            self.user_middleware = given
        edge, *inner = self.surrounding
        # The service's own CORS goes outside the guard, because refusals need its headers too
        for middleware, arguments, options in reversed((edge, *cors, *inner)):
            stack = middleware(stack, *arguments, **options)
        return stack


def create_application(
    settings: ChassisSettings,
    *,
    health_checks: Mapping[str, health.HealthCheck] | None = None,
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """Return an application with logs, database, health routes and HTTP protection.

    Args:
        settings: The service's settings, also at `app.state.settings`.
        health_checks: The service's own checks for /health, by name.
        lifespan: The service's own start and end. The database is open in between.
    """
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    database = assembly.engine.open(settings)
    monitor = assembly.Monitor(settings)

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        try:
            with streams_stopped_by_signals():
                async with (
                    monitor.watching(),
                    assembly.running(app),
                    lifespan(app) if lifespan else nullcontext(),
                ):
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
    checks = {
        **assembly.engine.checks(settings, database),
        **monitor.health_checks,
        **(health_checks or {}),
    }
    health.add_routes(app, health.Health(settings, checks))
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


@contextmanager
def streams_stopped_by_signals() -> Iterator[None]:
    """End the event streams on SIGTERM and SIGINT, under any server.

    A server waits for open responses before it shuts an application down. Our own protocol tells
    the streams of a stop, and others do not.
    """
    open_streams.stopping = False
    servers: dict[int, Callable[[int, FrameType | None], object]] = {}
    # A test client runs the application in a thread, where no signal arrives
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        servers = {number: handler for number, handler in found.items() if callable(handler)}
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: FrameType | None) -> None:
        # The server hears of the signal first. Ctrl-C reaches every process of a terminal,
        # and the first of them then sends SIGTERM. A server that heard of SIGTERM first
        # would end at once, like on a second Ctrl-C, without the service's own end.
        try:
            servers[number](number, frame)
        finally:
            loop.call_soon_threadsafe(open_streams.stop)

    for number in servers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in servers.items():
            signal.signal(number, handler)


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
    async def busy(_: Request, error: DatabaseBusyError) -> JSONResponse:
        logger.warning("The database was busy for too long")
        return problem(503, "The database is busy; try again", {"Retry-After": "1"})

    @app.exception_handler(StatementError)
    async def unstorable(_: Request, error: StatementError) -> JSONResponse:
        if isinstance(error.orig, TimeError):
            return problem(422, str(error.orig))
        if misfit := assembly.engine.find_misfit(error):
            logger.info("The database refused a value: %s", type(error.orig).__name__)
            return problem(422, misfit)
        raise error

    @app.exception_handler(IntegrityError)
    async def conflicting(_: Request, error: IntegrityError) -> JSONResponse:
        found = assembly.engine.find_conflict(error)
        if found is None:
            raise error
        # The lines after the first one may have values of the request and of other rows
        logger.info("The database refused a change: %s", str(error.orig).partition("\n")[0])
        detail, fields = found
        return problem(409, detail, fields=fields)

    @app.exception_handler(DatabaseUnavailableError)
    async def unavailable(_: Request, error: DatabaseUnavailableError) -> JSONResponse:
        # A driver may say it in several lines
        logger.error("The database is unavailable: %s", " ".join(str(error.orig).split()))
        return problem(503, "The database is unavailable", {"Retry-After": "5"})
