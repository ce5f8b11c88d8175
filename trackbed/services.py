"""Search for the services, their repositories and their answers."""

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from trackbed.addresses import is_url, shown
from trackbed.errors import FleetError, ServiceError
from trackbed.files import directory_within, read_in, read_within
from trackbed.git import at, borrow, git, tip
from trackbed.model import Service

ANSWERS = ".copier-answers.yml"
ANSWERS_NAME = re.compile(r"\.copier-answers(\.[\w-]+)*\.ya?ml")
ANSWERS_SIZE = 256 * 1024
SMALL = 20_000
ANSWERED = 500
"""Maximum number of answers, because each is a column in the table of all services."""
VALUES = 10_000
"""Maximum number of values in an answers file. Each counts as often as it is referred to."""
DEPTH = 20
LEVELS = 100
NESTING = (b"[", b"{", b"-", b"?")
FEW = 400
"""Maximum number of signs that open a level in a document that is surely not too deep."""
HEAD_SIZE = 1000
LATEST = "refs/trackbed/latest"
"""Name of the address's newest commit, in a clone of the cache."""

KEYS = {"name", "path", "url", "branch"}

YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def find(paths: Sequence[str], repos: Path | None) -> list[Service]:
    """Return the services of the command line, then those of the file, none of them twice.

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
    """Return the services, with the directory's parent in names that occur more than once."""
    names = [service.name for service in services]
    return [
        Service(f"{Path(service.path).parent.name}/{service.name}", service.path)
        if service.path and names.count(service.name) > 1
        else service
        for service in services
    ]


def expand(text: str) -> Iterable[Service]:
    """Return a service, or the services in a directory that is no service itself."""
    if is_url(text):
        return [Service(PurePosixPath(text.rstrip("/")).name.removesuffix(".git"), url=text)]
    path = absolute(text, Path())
    if not path.is_dir() or answers_files(path):
        return [local(path)]
    one = os.path.lexists(path / ".git")  # Directories of one repository may be services
    inside = [
        child
        for child in sorted(path.iterdir())
        if (not one and os.path.lexists(child / ".git")) or answers_files(child)
    ]
    return [local(child) for child in inside] or [local(path)]


def answers_files(path: Path) -> list[str]:
    """Return the names of the answers files in a directory, one for each of its templates."""
    try:
        return sorted(filter(ANSWERS_NAME.fullmatch, os.listdir(path)))
    except OSError:
        return []


def local(path: Path) -> Service:
    return Service(path.name, path=str(path))


def read_repos(file: Path) -> list[Service]:
    """Return the services of a repos.toml."""
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
        if not value.isprintable():
            raise FleetError(f"{place}: {key} has a character that cannot be seen")
    if ("path" in entry) == ("url" in entry):
        raise FleetError(f"{place}: needs a path or a url, and not both")
    name = entry.get("name") or PurePosixPath(entry.get("path") or entry["url"]).stem
    return Service(name, entry.get("path"), entry.get("url"), entry.get("branch"))


def resolve(service: Service, base: Path) -> Service:
    """Return a service with an absolute path. Paths in a file are relative to it."""
    if service.path is None:
        return service
    path = absolute(service.path, base)
    return Service(service.name, str(path), None, service.branch)


def absolute(path: str, base: Path) -> Path:
    """Return an absolute path. Raises FleetError for an unknown user or an impossible path."""
    try:
        return Path(os.path.abspath(base / Path(path).expanduser()))
    except (RuntimeError, ValueError) as error:
        raise FleetError(f"{path}: {error}") from None


def where(service: Service) -> str:
    place = service.path or shown(service.url or "")
    return f"{place}#{service.branch}" if service.branch else place


def cache_directory() -> Path:
    """Return the directory for clones of addresses.

    It is TRACKBED_FLEET_CACHE, or a directory of the user's cache.
    """
    if chosen := os.environ.get("TRACKBED_FLEET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trackbed-fleet"


def open_repository(service: Service) -> Path:
    """Return the directory of a service on this machine.

    Raises:
        ServiceError: it is no git repository, or cannot be cloned.
    """
    if service.url:
        return clone(service.url, service.branch)
    path = Path(service.path or "")
    if not path.is_dir():
        raise ServiceError("no such directory")
    if link := committed_link(path):
        raise ServiceError(f"{link} is a symbolic link in a repository: not followed")
    top(path)
    return path


def committed_link(path: Path) -> str | None:
    """Return the name of a link in a repository on the way to a directory, if there is one."""
    if path.is_symlink() and any((above / ".git").exists() for above in path.parents):
        return path.name
    return link_above(path.parent)


@cache
def link_above(path: Path) -> str | None:
    return None if path == path.parent else committed_link(path)


def top(path: Path) -> Path:
    """Return the root of the repository that a directory is in."""
    for directory in (path, *path.parents):
        if os.path.lexists(directory / ".git"):
            return directory
    raise ServiceError("not a git repository")


def clone(url: str, branch: str | None) -> Path:
    """Fetch the newest commit of an address into the cache. No file of it is checked out."""
    key = sha256(f"{url}#{branch}".encode()).hexdigest()[:12]
    name = re.sub(r"\W+", "-", PurePosixPath(url.rstrip("/")).stem).strip("-")
    directory = cache_directory() / f"{name}-{key}"
    options = ["--quiet", "--depth=1", "--no-tags", "--force", "--no-write-fetch-head"]
    refspec = f"{f'refs/heads/{branch}' if branch else 'HEAD'}:{LATEST}"

    def fetch(into: Path) -> None:
        git(into, *at(into), "fetch", *options, "--", url, refspec)

    if (directory / ".git").is_dir():
        fetch(directory)
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as staging:
        fresh = Path(staging) / "clone"
        git(None, "init", "--quiet", "--", fresh)
        git(fresh, *at(fresh), "remote", "add", "--", "origin", url)
        fetch(fresh)
        try:
            fresh.rename(directory)
        except OSError:  # Another process may have been first
            if not directory.is_dir():
                raise
    return directory


def last_commit(service: Service, directory: Path) -> str:
    """Return the full hash of the commit that a service is at.

    Raises:
        ServiceError: there is none.
    """
    if service.url:
        return git(directory, *at(directory), "rev-parse", "--verify", LATEST).strip()
    return tip(top(directory), service.branch)


def committed(service: Service, directory: Path) -> bool:
    """Return whether a commit counts, and not the files that are checked out."""
    if service.url:
        return True
    return service.branch is not None and service.branch != checked_out(directory)


Ours = Callable[[str, Path], bool]


def find_answers(
    service: Service, directory: Path, ours: Ours | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the name of the answers file of the template, and the answers in it.

    Args:
        service: the service.
        directory: its directory.
        ours: a function that returns if an address, in a directory, is the template's.

    Raises:
        ServiceError: there are none, or there are several and none is to be preferred.
    """
    if committed(service, directory):
        return committed_answers(service, directory, ours)
    root = top(directory)
    try:
        with directory_within(root, directory.relative_to(root)) as opened:
            names = filter(ANSWERS_NAME.fullmatch, os.listdir(opened))
            return choose(
                sorted(names), lambda name: read_in(opened, name, ANSWERS_SIZE), directory, ours
            )
    except OSError as error:
        raise ServiceError(f"{ANSWERS}: {error.strerror}") from None


def committed_answers(
    service: Service, directory: Path, ours: Ours | None, only: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the name and the answers from a commit, of the file `only` if given.

    Raises:
        ServiceError: as `find_answers` does.
    """
    commit = last_commit(service, directory)
    inside = directory.relative_to(top(directory)).as_posix()
    with tempfile.TemporaryDirectory(prefix="trackbed-fleet-") as scratch:
        borrowed = at(borrow(top(directory), Path(scratch) / "borrowed", commit))
        tree = commit if inside == "." else f"{commit}:{inside}"
        listed = git(None, *borrowed, "ls-tree", "-z", f"{tree}")
        entries = dict(reversed(entry.split("\t", 1)) for entry in listed.split("\0") if entry)

        def read(name: str) -> bytes:
            mode, kind, blob = entries[name].split()
            if kind != "blob" or mode == "120000":
                what = "a symbolic link: not followed" if mode == "120000" else "no regular file"
                raise ServiceError(f"{name} is {what}")
            try:
                text = git(None, *borrowed, "cat-file", "blob", blob, output=ANSWERS_SIZE)
            except ServiceError as error:
                if "printed more" in str(error):
                    raise ServiceError(f"{name} is larger than {ANSWERS_SIZE // 1024} kB") from None
                raise
            return text.encode("utf-8", "surrogateescape")

        names = sorted(filter(ANSWERS_NAME.fullmatch, entries))
        if only:
            names = [name for name in names if name == only]
        return choose(names, read, directory, ours)


def choose(
    names: Sequence[str], read: Callable[[str], bytes], directory: Path, ours: Ours | None
) -> tuple[str, dict[str, Any]]:
    """Return the template's own among a service's answers files. Raises ServiceError."""
    if not names:
        raise ServiceError(f"no {ANSWERS}: not made with Copier, or not kept up")
    if len(names) == 1:
        return names[0], parse(names[0], read(names[0]))
    found: dict[str, dict[str, Any]] = {}
    reasons: dict[str, ServiceError] = {}
    for name in names:
        try:
            found[name] = parse(name, read(name))
        except ServiceError as error:
            reasons[name] = error
    mine = [
        name
        for name, answers in found.items()
        if ours and answers.get("_src_path") and ours(str(answers["_src_path"]), directory)
    ]
    if len(mine) == 1:
        return mine[0], found[mine[0]]
    if mine:
        raise ServiceError(f"several answers files are of this template: {', '.join(mine)}")
    if ANSWERS in found:
        return ANSWERS, found[ANSWERS]
    if reason := reasons.get(ANSWERS):
        raise reason
    raise ServiceError(f"several answers files, and none is of this template: {', '.join(names)}")


def read_answers(service: Service, directory: Path, name: str = ANSWERS) -> dict[str, Any]:
    """Return the content of one answers file, with `_src_path` and `_commit`.

    Raises:
        ServiceError: there is no such file, or it cannot be read.
    """
    inside = directory.relative_to(top(directory))
    try:
        return parse(name, read_within(top(directory), inside / name, ANSWERS_SIZE))
    except FileNotFoundError:
        raise ServiceError(f"no {name}: not made with Copier, or not kept up") from None
    except OSError as error:
        raise ServiceError(f"{name}: {error.strerror}") from None


def parse(name: str, data: bytes) -> dict[str, Any]:
    """Return the answers that a file holds. Raises ServiceError."""
    try:
        text = data.decode("utf-8")
        if sum(map(data.count, NESTING)) > FEW:
            require_few_levels(text)
        loader = YamlLoader(text)
        try:
            node = loader.get_single_node()
            if (b"*" in data or len(data) > SMALL) and values(node) > VALUES:
                raise ServiceError(f"{name} holds more than {VALUES} values")
            answers = loader.construct_document(node) if node else None
        finally:
            loader.dispose()
    except UnicodeDecodeError:
        raise ServiceError(f"{name} is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ServiceError(f"{name} is no valid YAML{place}") from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        # YAML also takes 2026-13-45 or a number of 5,000 digits for a value
        raise ServiceError(f"{name} holds what is no answer") from None
    if isinstance(answers, dict) and len(answers) > ANSWERED:
        raise ServiceError(f"{name} holds more than {ANSWERED} answers")
    if not isinstance(answers, dict) or not all(isinstance(key, str) for key in answers):
        raise ServiceError(f"{name} holds no answers")
    try:
        require_shallow(answers)
        json.dumps(answers, default=str)
    except (RecursionError, TypeError, ValueError):  # A value holds itself, or keys are no texts
        raise ServiceError(f"{name} holds what is no answer") from None
    return answers


def require_few_levels(text: str) -> None:
    """Refuse a document that is so deep that the library's C code would crash.

    Raises:
        ValueError: it is too deep.
    """
    level = 0
    for event in yaml.parse(text, Loader=YamlLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1
        if level > LEVELS:
            raise ValueError("too deep")


def require_shallow(value: Any, room: int = DEPTH) -> None:
    """Refuse values that hold others too deep, or hold themselves. Raises ValueError."""
    if not room:
        raise ValueError("too deep")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set):
        return
    for item in value:
        require_shallow(item, room - 1)


def values(node: Any) -> int:
    """Return the number of values in a document, with its aliases written out.

    Raises:
        ValueError: the document holds itself.
    """
    counted: dict[int, int] = {}

    def count(one: Any) -> int:
        key = id(one)
        if key not in counted:
            counted[key] = -1
            inner = one.value if isinstance(one, yaml.CollectionNode) else ()
            total = 1
            for item in inner:
                total += sum(map(count, item)) if isinstance(item, tuple) else count(item)
            counted[key] = min(total, VALUES + 1)
        if counted[key] < 0:
            raise ValueError("it holds itself")
        return counted[key]

    return count(node) if node else 0


def checked_out(directory: Path) -> str | None:
    """Return the branch that is checked out, read from .git/HEAD."""
    try:
        head = read_within(top(directory), PurePosixPath(".git/HEAD"), HEAD_SIZE)
    except (OSError, ServiceError):
        return None
    return head.decode("utf-8", "replace").strip().removeprefix("ref: refs/heads/")
