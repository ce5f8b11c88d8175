# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Check for routes that change something without asking who the client is."""

import inspect
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security.base import SecurityBase
from starlette.routing import BaseRoute

from app.chassis import answers, assembly
from app.chassis.assembly import ChassisSettings
from app.chassis.checks.finding import Finding, ok, skipped, warning
from app.chassis.database import get_writer

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

SIGN_IN: Final = "sign-in"
"""Tag of routes that people need before they have signed in."""

SHOWN: Final = 5
"""Maximum number of routes in a verdict."""


def check(settings: ChassisSettings) -> Finding:
    """Make the application as the server does, and check its routes."""
    name = "http.open-routes"
    try:
        logging.disable()
        with redirect_stdout(sys.stderr):
            routes = assembly.make_application(settings).routes
    except Exception as error:
        return skipped(name, f"the application cannot be made here: {type(error).__name__}")
    finally:
        logging.disable(logging.NOTSET)
    found = sorted(set(open_routes(routes)))
    if not found:
        return ok(name, "whoever changes something has to say who it is")
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    verdict = f"open to everyone who finds the address: {', '.join(found[:SHOWN])}{more}"
    if not settings.production:
        return ok(name, verdict)
    signed_in = "oauth" in answers.FEATURES
    way = "have them take a CurrentUser" if signed_in else "add the feature oauth"
    return warning(name, verdict, f"{way}, or a check of your own, unless they are meant to be")


def open_routes(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[str]:
    """Yield the method and path of each route that writes without asking who the client is."""
    for route in iter_route_contexts(list(routes)):
        if mounted := getattr(route, "routes", None):
            yield from open_routes(mounted, f"{prefix}{route.path}")
        if SIGN_IN in getattr(route, "tags", ()):
            continue
        dependencies = [*dependencies_of(route)]
        writes = any(one.call is get_writer for one in dependencies)
        for method in route.methods or ():
            if (writes or method not in SAFE) and not any(map(is_guard, dependencies)):
                yield f"{method} {prefix}{route.path}"


def dependencies_of(route: RouteContext) -> Iterator[Dependant]:
    """Yield a route's dependencies and those below them, also of a function that it wraps."""
    dependant: Dependant | None = getattr(route, "dependant", None)
    if dependant is None or dependant.call is None:
        return
    waiting = [dependant, get_dependant(path="/", call=inspect.unwrap(dependant.call))]
    while waiting:
        one = waiting.pop()
        yield from one.dependencies
        waiting += one.dependencies


def is_guard(dependency: Dependant) -> bool:
    """Return whether a dependency asks who the client is.

    Such a dependency is the sign-in, FastAPI's security, or one of the service's own that sees
    the request or takes a header or a cookie.
    """
    call: Any = dependency.call
    if isinstance(call, SecurityBase) or call in [one.dependency for one in assembly.signed_in()]:
        return True
    sees = dependency.request_param_name or dependency.http_connection_param_name
    own = not str(getattr(call, "__module__", "")).startswith("app.chassis.")
    return own and bool(sees or dependency.header_params or dependency.cookie_params)
