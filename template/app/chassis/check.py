# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Command `python -m app check`, and its checks of the settings, the workers and the routes.

It runs here, or on variables from elsewhere.
"""

import inspect
import ipaddress
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Final, get_args

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security.base import SecurityBase
from starlette.routing import BaseRoute

from app.chassis import answers, assembly
from app.chassis.assembly import ChassisSettings
from app.chassis.checks import deployment
from app.chassis.checks.finding import (
    Finding,
    FindingStatus,
    failed,
    ok,
    readable,
    shortened,
    skipped,
    warning,
)
from app.chassis.database import get_writer
from app.chassis.errors import ConfigurationError, StartupError
from app.chassis.routing import below
from app.chassis.settings import EDGE_NETWORK, CoreSettings

KEPT: Final = ("HOME", "PATH", "SSL_CERT_FILE", "TMPDIR", "UV")

DRAINING: Final = "RAILWAY_DEPLOYMENT_DRAINING_SECONDS"

BASE_BYTES: Final = 33_000_000
WORKER_BYTES: Final = 49_000_000
"""Memory of a worker, measured as proportional set size.

The whole takes 82 MB with one worker and 230 MB with four.
"""

STRATEGY_BYTES: Final = {"litestream": 33_000_000}
"""Memory of the processes beside the server, by backup strategy."""

STRATEGIES: Final[dict[str, tuple[FindingStatus, str, str]]] = {
    "none": ("warning", "nothing is backed up", assembly.engine.BACKUP_ADVICE["none"]),
    "volume": (
        "ok",
        "the service copies its database every day, onto the volume: the copies are lost with it",
        "",
    ),
    "railway": (
        "warning",
        "Railway's own, on the Pro plan only: on Hobby nothing is backed up, and that cannot be "
        "seen from here",
        "look in the dashboard for a backup of today, or "
        f"{assembly.engine.BACKUP_ADVICE['railway']}",
    ),
    "litestream": ("ok", "every change goes to a bucket within a second or two", ""),
}

NARROW: Final = {4: 8, 6: 32}
"""Shortest prefix, by IP version, of a network that one operator's proxies may fill."""

MEMORY_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

SIGN_IN: Final = "sign-in"
"""Tag of routes that people need before they have signed in."""


def run(variables: Mapping[str, str] | None = None) -> list[Finding]:
    """Run every check that applies.

    Args:
        variables: Variables of a deployment, which are checked instead of this process's
            environment and .env. Facts that only its machine knows, such as the volume, are left
            out.
    """
    here = variables is None
    kind = assembly.settings_class()
    with environment(variables):
        try:
            settings = kind.load() if here else kind.load(_env_file=None)
        except ConfigurationError as error:
            wrong = [of_setting("failed", text) for text in error.problems]
            return [*wrong, skipped("rest", "needs valid settings"), *deployment.check()]
        findings = [ok("settings", f"{len(kind.model_fields)} settings are valid")]
        findings += check_settings(settings, os.environ)
        findings += assembly.engine.probes(settings, assembly.metadata() if here else None)
        if here:
            findings.append(memory(settings))
        findings += readable("backup.newest", assembly.check_backup(settings))
        findings += assembly.check_features(settings)
        findings += deployment.check()
        findings += routes(settings)
    return findings


@contextmanager
def environment(variables: Mapping[str, str] | None) -> Iterator[None]:
    """Set only these variables and those that programs need to run. None changes nothing."""
    if variables is None:
        yield
        return
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({name: before[name] for name in KEPT if name in before})
    os.environ.update(variables)
    # A deployment is production unless its variables say otherwise
    if not variables.get("RAILWAY_ENVIRONMENT_ID", "").strip():
        os.environ.setdefault("ENVIRONMENT", "production")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def read_variables(source: str) -> dict[str, str]:
    """Read variables from the output of `railway variable list --json` or from an env file.

    Args:
        source: A file, or `-` for standard input.

    Raises:
        StartupError: The source cannot be read, or is neither of the two.
    """
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise StartupError(f"Check: {source} cannot be read: {reason}.") from None
    is_json = text.lstrip().startswith(("{", "["))
    found = from_json(text, source) if is_json else from_lines(text, source)
    # No process can have such variables, and os.environ refuses them with an error of its own
    if any(not name or "=" in name or "\0" in name + value for name, value in found.items()):
        raise StartupError(f"Check: {source} has a name or a value that no variable can have.")
    return found


def from_json(text: str, source: str) -> dict[str, str]:
    """Read an object of names and values, or a list of objects with `name` and `value`."""
    try:
        given = json.loads(text)
        if isinstance(given, list):
            given = {entry["name"]: entry["value"] for entry in given}
        if not all(isinstance(value, str | int | float) for value in given.values()):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise StartupError(
            f"Check: {source} looks like JSON, but is no object of names and values; "
            "pipe `railway variable list --json` into it."
        ) from None
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in given.items()
    }


def from_lines(text: str, source: str) -> dict[str, str]:
    """Read an env file with python-dotenv, as the service itself does."""
    for statement in parse_stream(StringIO(text)):
        if statement.error:
            # The message never shows the line itself, which may hold a secret
            line = statement.original.line
            raise StartupError(f"Check: line {line} of {source} is not of the form NAME=VALUE.")
    given = dotenv_values(stream=StringIO(text))
    found = {name: value for name, value in given.items() if value is not None}
    if not found:
        raise StartupError(f"Check: {source} has no variables in it.")
    return found


def is_failed(findings: Iterable[Finding]) -> bool:
    return any(finding.status == "failed" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """Return a JSON object with the status of the whole and every finding."""
    status = "failed" if is_failed(findings) else "ok"
    listed = [finding._asdict() for finding in findings]
    return json.dumps({"status": status, "findings": listed}, indent=2)


def as_text(findings: Sequence[Finding]) -> str:
    """Return a line for every finding, another one for its advice, and one that counts them."""
    width = max(len(finding.id) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8} {finding.id:<{width}}  {finding.verdict}")
        if finding.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.advice}")
    counts = Counter(finding.status for finding in findings)
    lines.append(", ".join(f"{counts[status]} {status}" for status in get_args(FindingStatus)))
    return "\n".join(lines)


def check_settings(settings: CoreSettings, variables: Mapping[str, str]) -> Iterator[Finding]:
    """Check the settings, wherever they come from."""
    yield from network(settings)
    yield draining(settings, variables)
    yield Finding("backup.strategy", *STRATEGIES[answers.BACKUP])
    for text in settings.warnings():
        found = of_setting("warning", text)
        # The addresses and the volume have checks of their own
        if found.id not in {"settings.BACKEND_URL", "settings.DATABASE_URL"}:
            yield found


def of_setting(status: FindingStatus, text: str) -> Finding:
    """Return the finding for a message of the settings, whose advice follows a semicolon."""
    name, _, message = text.partition(": ")
    verdict, _, advice = message.partition("; ")
    return Finding(f"settings.{name}", status, verdict, advice or f"correct {name}")


def network(settings: CoreSettings) -> Iterator[Finding]:
    """Check who can reach the service, and who can pretend to be somebody else."""
    production, url = settings.production, settings.backend_url
    if production and not url:
        yield warning(
            "network.backend-url",
            "no public address is known",
            "create a domain with `railway domain`, or set BACKEND_URL",
        )
    else:
        yield warning_if(
            production and url.startswith("http:"),
            "network.backend-url",
            f"{url} is not encrypted",
            "set BACKEND_URL to https://...",
            otherwise=url,
        )
    yield warning_if(
        production and "*" in settings.allowed_hosts,
        "network.hosts",
        "ALLOWED_HOSTS answers every host name, so links can be forged",
        "list the names, or unset it: Railway's and BACKEND_URL's are known",
        otherwise=", ".join(settings.allowed_hosts),
    )
    plain = next((one for one in settings.cors_origins if one.startswith("http:")), None)
    yield warning_if(
        production and plain,
        "network.cors",
        f"CORS_ORIGINS has {plain}, which is not encrypted",
        "list https:// only",
        otherwise=", ".join(settings.cors_origins) or "no web page of another origin may call",
    )
    yield proxies(settings)
    yield warning_if(
        production and settings.docs_enabled,
        "network.docs",
        "/docs and /openapi.json show the whole API to everyone",
        "unset DOCS_ENABLED, unless the API is meant to be public",
        otherwise="on" if settings.docs_enabled else "off",
    )


def warning_if(there: object, name: str, verdict: str, advice: str, otherwise: str) -> Finding:
    """Return a warning if there is something to warn of, or else ok with another verdict."""
    return warning(name, verdict, advice) if there else ok(name, otherwise)


def proxies(settings: CoreSettings) -> Finding:
    """Check that no client can pretend to be another one."""
    networks = [ipaddress.ip_network(network) for network in settings.trusted_proxies]
    wide = [str(network) for network in networks if network.prefixlen < NARROW[network.version]]
    if wide:
        return warning(
            "network.proxy",
            f"TRUSTED_PROXIES believes {wide[0]}, so clients can choose their address",
            "list the proxy alone; on Railway unset it",
        )
    return warning_if(
        settings.on_railway and EDGE_NETWORK not in settings.trusted_proxies,
        "network.proxy",
        "TRUSTED_PROXIES leaves Railway's edge out, so every client looks like the edge",
        f"unset it, or add {EDGE_NETWORK}",
        otherwise=", ".join(settings.trusted_proxies) or "no proxy is believed",
    )


def draining(settings: CoreSettings, variables: Mapping[str, str]) -> Finding:
    """Check that a stop has the time that it needs. railway.json can set the time as well."""
    name = "deploy.draining"
    value = variables.get(DRAINING, "").strip()
    if not settings.on_railway:
        return skipped(name, "not on Railway")
    if not value.isdecimal():
        return skipped(name, f"{DRAINING} is not set; .railway/railway.py sets it for the service")
    needed = answers.DRAINING_SECONDS
    verdict = f"{DRAINING} is {value}, and a stop may take {needed} s"
    fault = int(value) < needed
    return warning_if(fault, name, verdict, f"set it to {needed}", otherwise=f"{value} s")


def memory(settings: CoreSettings) -> Finding:
    """Check that the workers fit into the container's memory."""
    name, workers = "workers.memory", settings.workers
    needed, limit = needed_bytes(workers), memory_limit()
    shown = f"WORKERS={workers} take about {needed / 1e6:.0f} MB"
    if limit is None:
        return skipped(name, f"{shown}; this machine sets no limit")
    if needed > limit:
        return failed(
            name, f"{shown}, more than the limit of {limit / 1e6:.0f} MB", "set WORKERS=1"
        )
    shown = f"{shown} of {limit / 1e6:.0f} MB"
    tight = needed > 0.7 * limit or workers > 2 * (os.cpu_count() or 1) + 1
    return warning_if(tight, name, shown, "set WORKERS=1", otherwise=shown)


def needed_bytes(workers: int) -> int:
    """Return about how many bytes of memory everything in the container takes."""
    worker = WORKER_BYTES + answers.WORKER_BYTES
    return BASE_BYTES + workers * worker + STRATEGY_BYTES.get(answers.BACKUP, 0)


def memory_limit() -> int | None:
    """Return the container's memory limit in bytes (control groups version 2, else 1)."""
    for file in MEMORY_LIMITS:
        try:
            value = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        # Version 1 says "no limit" with a number near 2**63
        return int(value) if value.isdecimal() and int(value) < 2**60 else None
    return None


def routes(settings: ChassisSettings) -> Iterator[Finding]:
    """Make the application as the server does, and check its routes."""
    name = "http.open-routes"
    try:
        logging.disable()
        with redirect_stdout(sys.stderr):
            made = assembly.make_application(settings).routes
    except Exception as error:
        yield skipped(name, f"the application cannot be made here: {type(error).__name__}")
        return
    finally:
        logging.disable(logging.NOTSET)
    yield guards(sorted(set(open_routes(made))), settings)
    yield from assembly.engine.check_writers(sorted(set(routes_that_wait(made))))


def guards(found: Sequence[str], settings: ChassisSettings) -> Finding:
    """Check that whoever changes something has to say who it is."""
    name = "http.open-routes"
    if not found:
        return ok(name, "whoever changes something has to say who it is")
    verdict = f"open to everyone who finds the address: {shortened(found)}"
    signed_in = "oauth" in answers.FEATURES
    way = "have them take a CurrentUser" if signed_in else "add the feature oauth"
    advice = f"{way}, or a check of your own, unless they are meant to be"
    return warning_if(settings.production, name, verdict, advice, otherwise=verdict)


def walk(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[str, RouteContext]]:
    """Yield each route with its whole path, also those of mounted applications."""
    for route in iter_route_contexts(list(routes)):
        if mounted := getattr(route, "routes", None):
            yield from walk(mounted, f"{prefix}{route.path}")
        yield f"{prefix}{route.path}", route


def open_routes(routes: Iterable[BaseRoute]) -> Iterator[str]:
    """Yield the method and path of each route that writes without asking who the client is."""
    for path, route in walk(routes):
        if SIGN_IN in getattr(route, "tags", ()):
            continue
        dependencies = [*dependencies_of(route)]
        writes = any(one.call is get_writer for one in dependencies)
        for method in route.methods or ():
            if (writes or method not in SAFE) and not any(map(is_guard, dependencies)):
                yield f"{method} {path}"


def routes_that_wait(routes: Iterable[BaseRoute]) -> Iterator[str]:
    """Yield the method and path of each route whose Writer FastAPI opens and closes.

    A plain function on a DatabaseRoute is not among them, because the route calls it in the
    Writer's thread.
    """
    for path, route in walk(routes):
        dependant: Dependant | None = getattr(route, "dependant", None)
        if dependant and any(one.call is get_writer for one in below(dependant)):
            yield from (f"{method} {path}" for method in route.methods or ())


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
