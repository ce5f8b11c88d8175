# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Routes that use the database, in one thread from BEGIN to COMMIT.

FastAPI alone changes threads for the function, again for its answer, and again for the commit.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final, get_args

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_typed_signature, solve_dependencies
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection
from starlette.responses import Response

from app.chassis.database import Database, get_reader, get_writer
from app.chassis.http import remember

RUNS: Final[dict[Any, Callable[..., Any]]] = {
    get_reader: Database.run_reading,
    get_writer: Database.run_writing,
}


class DatabaseRoute(APIRoute):
    """Route that calls its `def` function in the thread of its `Reader` or `Writer`.

    FastAPI calls it in its usual way if it is no plain `def`, if a dependency asks for the same
    session, or if it takes an `HTTPConnection`. A session of `dependency_overrides` is used in
    FastAPI's own threads.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        sessions = [one for one in below(self.dependant) if one.call in RUNS]
        plain = inspect.isfunction(endpoint) and not (
            inspect.iscoroutinefunction(endpoint)
            or inspect.isgeneratorfunction(endpoint)
            or inspect.isasyncgenfunction(endpoint)
        )
        if not plain or len(sessions) != 1 or self.dependant.http_connection_param_name:
            return
        (session,) = sessions
        if session in self.dependant.dependencies and session.name:
            model = self.response_model
            in_thread = called_in_thread(endpoint, session, session.name, model)
            super().__init__(path, in_thread, **options | {"response_model": model})


class Router(APIRouter):
    """An `APIRouter` whose routes work in the database's thread; see DatabaseRoute."""

    def __init__(self, *, route_class: type[APIRoute] = DatabaseRoute, **options: Any) -> None:
        super().__init__(route_class=route_class, **options)


def below(dependant: Dependant) -> Iterator[Dependant]:
    for one in dependant.dependencies:
        yield one
        yield from below(one)


def has_model(kind: Any) -> bool:
    """Return whether a type is a Pydantic model or made of such models."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return True
    return any(has_model(part) for part in get_args(kind))


def called_in_thread(
    endpoint: Callable[..., Any], dependency: Dependant, name: str, model: Any
) -> Callable[..., Any]:
    """Return the function as a coroutine whose parameter `name` takes the request."""
    run = RUNS[dependency.call]
    adapter = TypeAdapter(model) if model else None
    with_model = has_model(model)

    @functools.wraps(endpoint)
    async def in_thread(**values: Any) -> Any:
        connection: HTTPConnection = values.pop(name)
        undo = remember(values)

        def call(session: Session) -> Any:
            undo()
            answer = endpoint(**values, **{name: session})
            if adapter is None or isinstance(answer, Response):
                return answer
            # The check runs in this thread, because reading an attribute may query the database
            try:
                valid = adapter.validate_python(answer, from_attributes=True)
            except ValidationError as error:
                raise ResponseValidationError(error.errors(), body=answer) from error
            # FastAPI validates again. That does not change a model, but could change other values
            return valid if with_model else answer

        app = connection.app
        if dependency.call in getattr(app, "dependency_overrides", ()):
            return await run_in_threadpool(call, await overriding(connection, dependency, name))
        return await run(app.state.database, call)

    # FastAPI reads the signature, because only the type checker may know the answer's names
    signature = get_typed_signature(endpoint)
    parameters = [
        parameter.replace(annotation=HTTPConnection) if parameter.name == name else parameter
        for parameter in signature.parameters.values()
    ]
    in_thread.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return in_thread


async def overriding(connection: HTTPConnection, dependency: Dependant, name: str) -> Any:
    """Return what the application's `dependency_overrides` have for a dependency.

    Raises:
        RequestValidationError: It needs something of the request that is missing or wrong.
    """
    async with AsyncExitStack() as stack:
        solved = await solve_dependencies(
            request=connection,  # type: ignore[arg-type]
            dependant=Dependant(dependencies=[dependency]),
            dependency_overrides_provider=connection.app,
            async_exit_stack=stack,
            embed_body_fields=False,
        )
    if solved.errors:
        raise RequestValidationError(solved.errors)
    return solved.values[name]
