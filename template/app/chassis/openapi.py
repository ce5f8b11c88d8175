# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""OpenAPI document with the answers of the chassis, and the methods of a path."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute

TEXT: Final = {"type": "string"}


def record(**properties: object) -> dict[str, Any]:
    """Return the schema of an object that has all these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


LOCATION: Final = {"type": "array", "items": {"anyOf": [TEXT, {"type": "integer"}]}}
INVALID: Final = {"type": "array", "items": record(type=TEXT, loc=LOCATION, msg=TEXT)}

PROBLEM: Final = {"title": "Problem", **record(detail={"anyOf": [TEXT, INVALID]}, request_id=TEXT)}
"""Schema of every error, as `http.problem` makes it."""

RETRY: Final = {"type": "integer", "minimum": 0}

EVENT: Final = {
    "type": "object",
    "properties": {"data": TEXT, "event": TEXT, "id": TEXT, "retry": RETRY},
}
"""Schema of one event of a stream (https://spec.openapis.org/oas/v3.2.0.html#media-type-object)."""

SAFE: Final = frozenset({"get", "head", "options", "trace"})


def complete(document: dict[str, Any]) -> None:
    """Correct FastAPI's document, and add the errors that an operation does not describe itself."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            if "HTTPValidationError" in str(responses.get("422")):
                responses["422"] = problem("The request is not what is asked for")
            for answer in responses.values():
                if stream := answer.get("content", {}).get("text/event-stream"):
                    stream.pop("schema", None)
                    stream.setdefault("itemSchema", EVENT)
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = without_null(parameter["schema"])
            for status, description in errors(path, method, operation):
                responses.setdefault(status, problem(description))
            operation["responses"] = dict(sorted(responses.items()))
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # The service never sends FastAPI's
        schemas.pop(name, None)
    schemas["Problem"] = PROBLEM


def errors(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the status of each error that the operation can end with, and its cause."""
    yield "400", "The host is not served here, or the request cannot be read"
    if operation.get("security"):
        yield "401", "Nobody is signed in"
        if method not in SAFE:
            yield "403", "The page that asks is of another origin"
    if "{" in path:
        yield "404", "There is no such thing"
    if method not in SAFE:
        yield "409", "It is in conflict with what is there"
    if "requestBody" in operation:
        yield "413", "The request's body is too large"
    yield "503", "The service is busy, or its database unavailable; try again"


def problem(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter's schema without null. A parameter can be left out, but not be null."""
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if not options:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**rest, "anyOf": options} if len(options) > 1 else {**rest, **options[0]}


def methods(routes: Sequence[BaseRoute], path: str) -> list[str]:
    """Return the methods of all routes that have a path."""
    found: set[str] = set()
    for route in iter_route_contexts(routes):
        form: re.Pattern[str] | None = getattr(route, "path_regex", None)
        if form and form.match(path):
            found.update(getattr(route, "methods", None) or ())
    return sorted(found)
