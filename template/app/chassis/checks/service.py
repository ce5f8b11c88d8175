# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks of hosts, origins, proxies and workers. The settings may be allowed, but not meant."""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from app.chassis import answers
from app.chassis.checks.finding import Finding, failed, ok, skipped, warning
from app.chassis.settings import EDGE_NETWORK, CoreSettings

DRAINING: Final = "RAILWAY_DEPLOYMENT_DRAINING_SECONDS"
STOP_SECONDS: Final = answers.DRAINING_SECONDS

BASE_BYTES: Final = 33_000_000
WORKER_BYTES: Final = 49_000_000
"""Memory of a worker, measured as proportional set size.

The whole takes 82 MB with one worker and 230 MB with four.
"""

STRATEGY_BYTES: Final = {"litestream": 33_000_000}
"""Memory of the processes beside the server, by backup strategy."""

STRATEGIES: Final = {
    "none": warning(
        "backup.strategy",
        "nothing is backed up",
        "`uvx copier update --defaults --vcs-ref=:current: -d backup=volume`, or copy by hand",
    ),
    "volume": ok(
        "backup.strategy",
        "the service copies its database every day, onto the volume: the copies are lost with it",
    ),
    "railway": warning(
        "backup.strategy",
        "Railway's own, on the Pro plan only: on Hobby nothing is backed up, and that cannot be "
        "seen from here",
        "look in the dashboard for a backup of today, or have the service make copies: "
        "`uvx copier update --defaults --vcs-ref=:current: -d backup=volume`",
    ),
    "litestream": ok("backup.strategy", "every change goes to a bucket within a second or two"),
}

NARROW: Final = {4: 8, 6: 32}
"""Shortest prefix, by IP version, of a network that one operator's proxies may fill."""

MEMORY_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def check(settings: CoreSettings, variables: Mapping[str, str]) -> Iterator[Finding]:
    """Check the settings, wherever they come from."""
    yield backend_url(settings)
    yield hosts(settings)
    yield origins(settings)
    yield proxies(settings)
    yield docs(settings)
    yield draining(settings, variables)
    yield strategy()
    yield from warnings(settings)


def warnings(settings: CoreSettings) -> Iterator[Finding]:
    """Yield the warnings of the settings themselves that no check above is about."""
    for text in settings.warnings():
        name, _, message = text.partition(": ")
        verdict, _, advice = message.partition("; ")
        if name not in {"BACKEND_URL", "DATABASE_URL"}:
            yield warning(f"settings.{name}", verdict, advice)


def backend_url(settings: CoreSettings) -> Finding:
    name = "network.backend-url"
    if not settings.production:
        return ok(name, settings.backend_url)
    if not settings.backend_url:
        return warning(
            name,
            "no public address is known",
            "create a domain with `railway domain`, or set BACKEND_URL",
        )
    if settings.backend_url.startswith("http:"):
        return warning(
            name, f"{settings.backend_url} is not encrypted", "set BACKEND_URL to https://..."
        )
    return ok(name, settings.backend_url)


def hosts(settings: CoreSettings) -> Finding:
    if settings.production and "*" in settings.allowed_hosts:
        return warning(
            "network.hosts",
            "ALLOWED_HOSTS answers every host name, so links can be forged",
            "list the names, or unset it: Railway's and BACKEND_URL's are known",
        )
    return ok("network.hosts", ", ".join(settings.allowed_hosts))


def origins(settings: CoreSettings) -> Finding:
    name = "network.cors"
    open_ones = [origin for origin in settings.cors_origins if origin.startswith("http:")]
    if settings.production and open_ones:
        return warning(
            name, f"CORS_ORIGINS has {open_ones[0]}, which is not encrypted", "list https:// only"
        )
    return ok(name, ", ".join(settings.cors_origins) or "no web page of another origin may call")


def proxies(settings: CoreSettings) -> Finding:
    """Check that no client can pretend to be another one."""
    name = "network.proxy"
    networks = [ipaddress.ip_network(network) for network in settings.trusted_proxies]
    wide = [str(network) for network in networks if network.prefixlen < NARROW[network.version]]
    if wide:
        return warning(
            name,
            f"TRUSTED_PROXIES believes {wide[0]}, so clients can choose their address",
            "list the proxy alone; on Railway unset it",
        )
    if settings.on_railway and EDGE_NETWORK not in settings.trusted_proxies:
        return warning(
            name,
            "TRUSTED_PROXIES leaves Railway's edge out, so every client looks like the edge",
            f"unset it, or add {EDGE_NETWORK}",
        )
    return ok(name, ", ".join(settings.trusted_proxies) or "no proxy is believed")


def docs(settings: CoreSettings) -> Finding:
    if settings.production and settings.docs_enabled:
        return warning(
            "network.docs",
            "/docs and /openapi.json show the whole API to everyone",
            "unset DOCS_ENABLED, unless the API is meant to be public",
        )
    return ok("network.docs", "on" if settings.docs_enabled else "off")


def draining(settings: CoreSettings, variables: Mapping[str, str]) -> Finding:
    """Check that a stop has the time that it needs. railway.json can set the time as well."""
    name = "deploy.draining"
    value = variables.get(DRAINING, "").strip()
    if not settings.on_railway:
        return skipped(name, "not on Railway")
    if not value.isdecimal():
        return skipped(name, f"{DRAINING} is not set; .railway/railway.py sets it for the service")
    if int(value) < STOP_SECONDS:
        return warning(
            name,
            f"{DRAINING} is {value}, and a stop may take {STOP_SECONDS} s",
            f"set it to {STOP_SECONDS}",
        )
    return ok(name, f"{value} s")


def strategy() -> Finding:
    return STRATEGIES[answers.BACKUP]


def memory(settings: CoreSettings) -> Finding:
    """Check that the workers fit into the container's memory."""
    name = "workers.memory"
    needed = needed_bytes(settings.workers)
    shown = f"WORKERS={settings.workers} take about {needed / 1e6:.0f} MB"
    limit = memory_limit()
    if limit is None:
        return skipped(name, f"{shown}; this machine sets no limit")
    if needed > limit:
        return failed(
            name, f"{shown}, more than the limit of {limit / 1e6:.0f} MB", "set WORKERS=1"
        )
    if needed > 0.7 * limit or settings.workers > 2 * (os.cpu_count() or 1) + 1:
        return warning(name, f"{shown} of {limit / 1e6:.0f} MB", "set WORKERS=1")
    return ok(name, f"{shown} of {limit / 1e6:.0f} MB")


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
