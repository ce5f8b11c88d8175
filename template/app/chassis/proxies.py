# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Variables that name a proxy or certificates, which HTTP clients read by themselves."""

import os
import ssl
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Final

NAMES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})


def refusals(library: str) -> list[str]:
    """Return a line for each variable with which no client could be made.

    Args:
        library: `httpx` or `httpx2`, imported only where there is such a variable.
    """
    found = []
    try:
        if file := os.environ.get("SSL_CERT_FILE"):
            ssl.create_default_context(cafile=file)
    except OSError:
        found.append("SSL_CERT_FILE: names no file of certificates; correct it, or unset it")
    given = {name: value for name, value in os.environ.items() if name.upper() in NAMES and value}
    if not given:
        return found
    client = import_module(library).Client
    for name, value in given.items():
        if name.upper() != "NO_PROXY":
            proxy = value if "://" in value else f"http://{value}"
            if reason := why_not(partial(client, proxy=proxy, verify=False)):
                found.append(f"{name}: {reason}")
    if not found and why_not(partial(client, verify=False)):
        name = next((name for name in given if name.upper() == "NO_PROXY"), next(iter(given)))
        found.append(f"{name}: {library} cannot read it; list host names, or unset it")
    return found


def why_not(make: Callable[[], object]) -> str | None:
    """Return why no client can be made, without the value, which may hold a password."""
    advice = "set it to http://HOST:PORT, or unset it"
    try:
        make()
    except ImportError:
        return f"names a SOCKS proxy, and socksio is not installed; {advice}"
    except Exception:
        return f"is not the address of a proxy; {advice}"
    return None
