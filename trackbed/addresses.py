"""Addresses of repositories, compared, checked if a stranger names them, and shown."""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trackbed.errors import ServiceError, without_users

SHORT = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SCP = re.compile(r"(?:[\w.+-]+@)?(?P<host>[\w.-]+|\[[0-9A-Fa-f:.]+\]):(?P<path>.*)", re.DOTALL)
PORTS = {"git": 9418, "http": 80, "https": 443, "ssh": 22}
STRANGERS = ("https", "ssh")
"""Protocols that prove the identity of the server."""
CASELESS = ("github.com", "gitlab.com", "bitbucket.org")
"""Hosts that do not tell names of repositories apart by their case."""
MISTAKEN = re.compile("[\x00-\x20\x7f\\\\\"'<>`^{|}\ud800-\udfff]")


@dataclass(frozen=True)
class Address:
    """Address of a repository on another machine, without the user's name.

    Attributes:
        port: None is the protocol's own.
        path: as it was written, but for slashes at both ends and `.git`.
    """

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def repository(self) -> str:
        """Return the same text for all ways of writing the same repository.

        https and ssh lead to the same one if neither names a port. Another protocol, another
        port, and the case of a path make another.
        """
        path = self.path.lower() if self.host in CASELESS else self.path
        if self.scheme in STRANGERS and self.port is None:
            return f"{self.host}/{path}"
        return f"{self.scheme}://{self.host}:{self.port or PORTS.get(self.scheme)}/{path}"


def expanded(address: str) -> str:
    """Write out the short forms that Copier knows."""
    for short, whole in SHORT.items():
        if address.startswith(short):
            return whole + address.removeprefix(short).lstrip("/")
    return address.removeprefix("git+")


def is_url(text: str) -> bool:
    """Tell the address of another machine, or of a file by its scheme, from a path."""
    if SCHEME.match(text):
        return True
    found = SCP.fullmatch(text)
    return bool(found) and "@" in text.partition(":")[0]


@lru_cache
def parse(address: str) -> Address:
    """Take an address apart, as git and curl do.

    Raises:
        ServiceError: it is mistaken, or written so that programs disagree about it.
    """
    text = expanded(address)
    try:
        if MISTAKEN.search(text):
            raise ValueError
        if SCHEME.match(text):
            parts = urlsplit(text)
            scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
            path = text[SCHEME.match(text).end() + len(parts.netloc) :]  # type: ignore[union-attr]
        else:
            found = SCP.fullmatch(text)
            if found is None:
                raise ValueError
            scheme, host, port, path = "ssh", found["host"].lower(), None, found["path"]
            path = f"/{path}"
        host = host.rstrip(".")
        if not host or host.startswith("-") or path[:1] != "/" or not path.strip("/"):
            raise ValueError
    except ValueError:
        raise ServiceError(f"the template's address is mistaken: {shown(address)}") from None
    if {".", ".."} & set(re.split(r"[/\\]", unquote(path))):
        raise ServiceError(f"the template's address has a step up in its path: {shown(address)}")
    plain = re.sub(r"/+", "/", path).strip("/").removesuffix(".git")
    return Address(scheme, host, None if port == PORTS.get(scheme) else port, plain)


def of_a_stranger(address: str) -> str:
    """Return the address, which a service names, as git is to have it.

    Raises:
        ServiceError: it is no https or ssh address.
    """
    text = expanded(address)
    if not is_url(text) or text.lower().startswith("file:"):
        path = path_of(text)
        if path.is_absolute() and is_path(text) and not os.path.lexists(path):
            raise ServiceError(f"the template is gone: {shown(address)}")
        hint = f": if {address} is yours, add --template or --address {address}"
        raise ServiceError(
            "made from another template, whose address is a path"
            + (hint if path.is_absolute() else "")
        )
    parsed = parse(address)
    if parsed.scheme not in STRANGERS:
        raise ServiceError(f"the template's address is neither https nor ssh: {shown(address)}")
    return text


def relative_hint(address: str) -> str:
    """Return the help for a path that is valid only where the service was copied."""
    if is_url(expanded(address)) or path_of(address).is_absolute():
        return ""
    return f"; it was made from {address}: if that was this template, add --address {address}"


def normalized(address: str, base: Path | None = None) -> str:
    """Return the same text for all ways of writing an address. Paths are relative to `base`."""
    text = expanded(address)
    if is_url(text) and not text.startswith("file://"):
        try:
            return parse(address).repository
        except ServiceError:
            return address
    if not is_path(text):
        return address
    return os.path.realpath((base or Path.cwd()) / path_of(text))


def is_path(text: str) -> bool:
    """Return whether there can be a file of that name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def path_of(text: str) -> Path:
    path = Path(text.removeprefix("file://"))
    try:
        return path.expanduser()
    except RuntimeError:  # There is no such user
        return path


def shown(address: str) -> str:
    """Return an address without its user and password."""
    return without_users(address)
