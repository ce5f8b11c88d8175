"""Find the services, and open their repositories."""

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from trackbed.errors import FleetError, ServiceError
from trackbed.git import git
from trackbed.model import Service

ANSWERS = ".copier-answers.yml"
KEYS = {"name", "path", "url", "branch"}

YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def find(paths: Sequence[str], repos: Path | None) -> list[Service]:
    """The services of the command line, then those of the file, none of them twice.

    Raises:
        FleetError: there are none, or the file is mistaken.
    """
    found = [service for path in paths for service in expand(path)]
    if repos:
        found += read_repos(repos)
    if not found:
        raise FleetError("no services: give their directories, or --repos FILE")
    unique = {(service.path, service.url, service.branch): service for service in found}
    return distinct(list(unique.values()))


def distinct(services: Sequence[Service]) -> list[Service]:
    """Services of one name are called by their directory's parent as well."""
    names = [service.name for service in services]
    return [
        Service(f"{Path(service.path).parent.name}/{service.name}", service.path)
        if service.path and names.count(service.name) > 1
        else service
        for service in services
    ]


def is_url(text: str) -> bool:
    return "://" in text or bool(re.match(r"[\w.-]+@[\w.-]+:", text))


def expand(text: str) -> Iterable[Service]:
    """A service, or those in a directory that is none itself."""
    if is_url(text):
        return [Service(PurePosixPath(text.rstrip("/")).name.removesuffix(".git"), url=text)]
    path = Path(os.path.abspath(Path(text).expanduser()))
    if not path.is_dir() or (path / ".git").exists() or (path / ANSWERS).exists():
        return [local(path)]
    inside = [child for child in sorted(path.iterdir()) if (child / ".git").exists()]
    return [local(child) for child in inside] or [local(path)]


def local(path: Path) -> Service:
    return Service(path.name, path=str(path))


def read_repos(file: Path) -> list[Service]:
    """The services of a repos.toml."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FleetError(f"{file}: {error}") from None
    for key in document.keys() - {"service"}:
        raise FleetError(f"{file}: {key}: only [[service]] tables are known")
    entries = document.get("service", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FleetError(f"{file}: services are [[service]] tables")
    services = [read_service(entry, f"{file}: service {n}") for n, entry in enumerate(entries, 1)]
    names = [service.name for service in services]
    for name in names:
        if names.count(name) > 1:
            raise FleetError(f"{file}: there are two services named {name}")
    return [resolve(service, file.parent) for service in services]


def read_service(entry: dict[str, Any], place: str) -> Service:
    for key, value in entry.items():
        if key not in KEYS:
            raise FleetError(f"{place}: unknown key {key}: known are name, path, url, branch")
        if not isinstance(value, str) or not value.strip() or value.startswith("-"):
            raise FleetError(f"{place}: {key} must be a text")
    if ("path" in entry) == ("url" in entry):
        raise FleetError(f"{place}: needs a path or a url, and not both")
    name = entry.get("name") or PurePosixPath(entry.get("path") or entry["url"]).stem
    return Service(name, entry.get("path"), entry.get("url"), entry.get("branch"))


def resolve(service: Service, base: Path) -> Service:
    """Paths in a file are relative to it."""
    if service.path is None:
        return service
    path = os.path.abspath(base / Path(service.path).expanduser())
    return Service(service.name, path, None, service.branch)


def shown(address: str) -> str:
    """An address without its user and password."""
    parts = urlsplit(address)
    if parts.scheme and "@" in parts.netloc:
        return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))
    return address


def where(service: Service) -> str:
    place = service.path or shown(service.url or "")
    return f"{place}#{service.branch}" if service.branch else place


def cache() -> Path:
    """Where clones of addresses are kept: TRACKBED_FLEET_CACHE, or the user's cache."""
    if chosen := os.environ.get("TRACKBED_FLEET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trackbed-fleet"


def open_repository(service: Service) -> Path:
    """The directory of a service on this machine.

    Raises:
        ServiceError: it is no git repository, or cannot be cloned.
    """
    if service.url:
        return clone(service.url, service.branch)
    path = Path(service.path or "")
    if not path.is_dir():
        raise ServiceError("no such directory")
    top(path)
    return path


def top(path: Path) -> Path:
    """The root of the repository that a directory is in."""
    for directory in (path, *path.parents):
        if (directory / ".git").exists():
            return directory
    raise ServiceError("not a git repository")


def clone(url: str, branch: str | None) -> Path:
    """The newest commit of an address, in the cache."""
    key = sha256(f"{url}#{branch}".encode()).hexdigest()[:12]
    name = re.sub(r"\W+", "-", PurePosixPath(url.rstrip("/")).stem).strip("-")
    directory = cache() / f"{name}-{key}"
    if (directory / ".git").is_dir():
        git(directory, "fetch", "--quiet", "--depth=1", "--no-tags", "origin", branch or "HEAD")
        git(directory, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--depth=1", "--no-tags"] + (["--branch", branch] if branch else [])
    with tempfile.TemporaryDirectory(dir=directory.parent) as staging:
        fresh = Path(staging) / "clone"
        git(None, "clone", *options, "--", url, str(fresh))
        try:
            fresh.rename(directory)
        except OSError:  # another process was first
            if not directory.is_dir():
                raise
    return directory


def read_answers(service: Service, directory: Path, name: str = ANSWERS) -> dict[str, Any]:
    """What was answered, with `_src_path` and `_commit`.

    Raises:
        ServiceError: there is no answers file, or it cannot be read.
    """
    try:
        if service.path and service.branch and service.branch != checked_out(directory):
            inside = directory.relative_to(top(directory))
            file = (inside / name).as_posix()
            data = git(directory, "show", f"{service.branch}:{file}")
        else:
            data = (directory / name).read_text(encoding="utf-8")
        answers = yaml.load(data, Loader=YamlLoader)
    except FileNotFoundError:
        raise ServiceError(f"no {name}: not made with Copier, or not kept up") from None
    except OSError as error:
        raise ServiceError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ServiceError(f"{name} is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ServiceError(f"{name} is no valid YAML{place}") from None
    if not isinstance(answers, dict) or not all(isinstance(key, str) for key in answers):
        raise ServiceError(f"{name} holds no answers")
    try:
        json.dumps(answers, default=str)
    except (RecursionError, TypeError, ValueError):  # it holds itself, or keys are no texts
        raise ServiceError(f"{name} holds what is no answer") from None
    return answers


def checked_out(directory: Path) -> str | None:
    """The branch, read from the file that says so."""
    try:
        head = (top(directory) / ".git" / "HEAD").read_text(encoding="utf-8")
    except OSError:
        return None
    return head.strip().removeprefix("ref: refs/heads/")
