"""Template that services are made from, with its addresses, releases and commits."""

import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from trackbed.addresses import expanded, is_url, normalized, of_a_stranger, shown
from trackbed.bounded import MEGABYTE
from trackbed.errors import FleetError, ServiceError, unexpected
from trackbed.files import require_inside
from trackbed.git import at, commit_of, for_a_stranger, git, links_of, require_git
from trackbed.model import Release, Service
from trackbed.releases import (
    DESCRIBED,
    HASH,
    as_version,
    final,
    read_releases,
    tagged_releases,
)
from trackbed.services import cache_directory

RECORDED = re.compile(r"[A-Za-z0-9][\w.+-]{0,199}", re.ASCII)
"""Form of tags that a service may record. git could take other names for search operators."""
STRANGERS_SECONDS = 120
STRANGERS_BYTES = 512 * MEGABYTE
"""Maximum seconds for fetching a stranger's template, and maximum bytes of its pack."""
FETCHES = 8
"""Maximum number of strangers' templates that are fetched at once."""


@dataclass(frozen=True)
class Template:
    """Template whose owner runs the command.

    Attributes:
        address: a directory, or an address that git can clone.
        addresses: the other names under which services may record it, normalized.
    """

    address: str
    addresses: frozenset[str] = field(default_factory=frozenset)

    def named(self, address: str, base: Path) -> bool:
        """Return whether an address, recorded in a directory, is the template's."""
        return bool(self.addresses & {address, normalized(address, base)})


@dataclass(frozen=True)
class Fleet:
    """Services, and the template of the person who asks."""

    services: Sequence[Service]
    template: Template | None
    jobs: int
    trust: bool = False


def find_template(given: str | None, further: Sequence[str] = ()) -> Template | None:
    """Return the template that is named, or else the current directory, if it is one.

    Raises:
        FleetError: the path that is named is no template.
    """
    if given is None:
        here = Path.cwd()
        if not is_template(here) or not (here / ".git").exists():
            return None
        given = str(here)
    elif not is_url(expanded(given)):
        given = os.path.abspath(Path(given).expanduser())
        if not is_template(Path(given)):
            raise FleetError(f"{given} is no template: there is no copier.yml")
    names = [given, *further]
    if Path(given).is_dir():
        try:
            listed = git(Path(given), "config", "--get-regexp", r"^remote\..*\.url$").splitlines()
        except ServiceError:
            listed = []
        names += [line.split(" ", 1)[1] for line in listed]
    return Template(given, frozenset([*map(normalized, names), *further]))


def is_template(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("copier.yml", "copier.yaml"))


def repository(address: str, *, stranger: bool = False) -> Path:
    """Return a repository on this machine with all of a template's commits and tags.

    Args:
        address: a directory, or an address that git can clone.
        stranger: it is an address that only a service names.

    Raises:
        ServiceError: the address leads nowhere.
    """
    require_git()
    if stranger:
        plain = of_a_stranger(address)
    else:
        plain = expanded(address)
        if not is_url(plain) or plain.startswith("file://"):
            path = Path(normalized(plain))
            if not path.exists():
                raise ServiceError(f"the template is gone: {shown(address)}")
            return path
    bounds: dict[str, Any] = (
        {"env": for_a_stranger(), "seconds": STRANGERS_SECONDS, "largest": STRANGERS_BYTES}
        if stranger
        else {}
    )
    mirror = cache_directory() / f"template-{sha256(plain.encode()).hexdigest()[:12]}.git"
    try:
        if mirror.is_dir():
            git(mirror, *at(mirror), "fetch", "--quiet", "--prune", "--force", **bounds)
        else:
            mirror.parent.mkdir(parents=True, exist_ok=True)
            staging = mirror.with_name(f"{mirror.name}.{os.getpid()}")
            git(None, "clone", "--quiet", "--mirror", "--", plain, staging, **bounds)
            staging.rename(mirror)
    except ServiceError as error:
        raise ServiceError(f"the template cannot be read: {shown(address)}: {error}") from None
    except OSError as error:
        raise ServiceError(f"the template cannot be kept: {error}") from None
    return mirror


class Sources:
    """Repositories of the templates that services name, each fetched once.

    The person's own template may be a directory. Any other template is on another machine.
    """

    def __init__(self, template: Template | None) -> None:
        self.template = template
        self.known: dict[str, Path | ServiceError] = {}

    def find(self, address: str, base: Path) -> Path:
        """Return the repository. Raises ServiceError if it cannot be read, or may not be."""
        key = self.key(address, base)
        if key not in self.known:
            self.known[key] = self.attempt(address, base)
        found = self.known[key]
        if isinstance(found, ServiceError):
            raise ServiceError(str(found))
        return found

    def find_all(self, wanted: Iterable[tuple[str, Path]]) -> None:
        """Fetch many at once, so that one that does not answer delays no other."""
        missing = {self.key(*one): one for one in wanted}
        missing = {key: one for key, one in missing.items() if key not in self.known}
        with ThreadPoolExecutor(FETCHES) as pool:
            found = pool.map(lambda one: self.attempt(*one), missing.values())
            self.known |= dict(zip(missing, found, strict=True))

    def key(self, address: str, base: Path) -> str:
        """Return the exact address with its user, so that services share no mistake in it."""
        plain = expanded(address)
        return plain if is_url(plain) else normalized(address, base)

    def attempt(self, address: str, base: Path) -> Path | ServiceError:
        try:
            if self.template is None or not self.template.named(address, base):
                return repository(address, stranger=True)
            path = normalized(address, base)
            if is_url(expanded(address)):
                return repository(address)
            return repository(path if path in self.template.addresses else self.template.address)
        except ServiceError as error:
            return error
        except Exception as error:  # One service never stops the others
            return unexpected(error)


def releases_of(template: Template) -> list[Release]:
    """Return the releases that the template's releases.toml lists, or else its tags.

    Raises:
        FleetError: neither can be read.
    """
    listed = Path(template.address) / "releases.toml"
    if listed.is_file():
        return read_releases(listed)
    try:
        return tagged_releases(repository(template.address))
    except ServiceError as error:
        raise FleetError(str(error)) from None


class Catalogue:
    """Releases of every template that services name, each looked up once."""

    def __init__(self, template: Template | None) -> None:
        self.template = template
        self.own = releases_of(template) if template else []
        self.sources = Sources(template)
        self.known: dict[Path, list[Release] | str] = {}

    def look_up(self, wanted: Iterable[tuple[str, Path]]) -> None:
        """Fetch the templates that are not the person's own, many at once."""
        self.sources.find_all(one for one in wanted if not self.ours(*one))

    def ours(self, address: str, base: Path) -> bool:
        return self.template is not None and self.template.named(address, base)

    def releases(self, address: str, base: Path) -> Sequence[Release]:
        """Return a template's releases. Raises ServiceError if the template cannot be read."""
        if self.ours(address, base):
            return self.own
        source = self.sources.find(address, base)
        if source not in self.known:
            try:
                self.known[source] = tagged_releases(source)
            except ServiceError as error:
                self.known[source] = str(error)
        found = self.known[source]
        if isinstance(found, str):
            raise ServiceError(found)
        return found


@dataclass(frozen=True)
class Step:
    """Step from one commit of the template to another, both checked out.

    Attributes:
        old: the recorded commit's files. `new` is `old` if only that commit is asked for.
        target: the full hash of the other one, and `name`, its name for people.
        own: both are of the person's own template, and of no other.
    """

    old: Path
    new: Path
    target: str
    name: str
    own: bool = False


class Commits:
    """Commits of templates, each checked out once below a directory of its own."""

    def __init__(
        self,
        directory: Path,
        template: Template | None,
        *,
        working_tree: bool = False,
        release_only: bool = False,
    ) -> None:
        self.directory = directory
        self.template = template
        self.working_tree = working_tree
        self.release_only = release_only
        self.sources = Sources(template)
        self.mirrors: dict[Path, Path | str] = {}
        self.checkouts: dict[tuple[Path, str], Path] = {}
        self.targets: dict[tuple[Path, str | None], tuple[str, str]] = {}
        self.own: set[Path] = set()
        if template:
            try:
                self.own.add(self.borrowed(repository(template.address)))
            except ServiceError as error:
                raise FleetError(str(error)) from None

    def mirror(self, address: str, base: Path) -> Path:
        """Return a bare repository that borrows the commits of the template of a service."""
        return self.borrowed(self.sources.find(address, base))

    def borrowed(self, source: Path) -> Path:
        if source not in self.mirrors:
            mirror = self.directory / f"template-{len(self.mirrors)}.git"
            try:
                options = ["--quiet", "--mirror", "--shared"]
                git(None, "clone", *options, "--", source, mirror)
                self.mirrors[source] = mirror
                tag_listed(source, mirror)
            except ServiceError as error:
                self.mirrors[source] = str(error)
        found = self.mirrors[source]
        if isinstance(found, str):
            raise ServiceError(found)
        return found

    def step(self, address: str, base: Path, recorded: str, to: str | None) -> Step:
        """Return the step of a service's update, with both commits checked out.

        Raises:
            ServiceError: a commit is not there, or the service is made from another template.
            FleetError: there is no such revision of the owner's template.
        """
        ours = self.own_mirror(address, base, recorded)
        mirror = ours or self.mirror(address, base)
        if ours is None and self.template and to is not None:
            raise ServiceError(f"made from another template: {shown(address)}")
        old_mirror, old = self.recorded(address, base, recorded, ours)
        target, name = self.target(mirror, to)
        own = ours is not None and old_mirror == ours
        new = self.checkout(mirror, target)
        return Step(self.checkout(old_mirror, old), new, target, name, own)

    def current(self, address: str, base: Path, recorded: str) -> Step:
        """Return a step that stays at the recorded commit, checked out."""
        ours = self.own_mirror(address, base, recorded)
        mirror, commit = self.recorded(address, base, recorded, ours)
        files = self.checkout(mirror, commit)
        return Step(files, files, "", recorded, ours is not None and mirror == ours)

    def recorded(
        self, address: str, base: Path, recorded: str, ours: Path | None
    ) -> tuple[Path, str]:
        """Return the recorded commit, and the owner's mirror or else the address's that has it."""
        if ours and (commit := recorded_commit(ours, recorded)):
            return ours, commit
        with suppress(ServiceError) if ours else nullcontext():
            theirs = self.mirror(address, base)
            if commit := recorded_commit(theirs, recorded):
                return theirs, commit
        dirty = (
            "; it was copied with changes that were never committed"
            if DESCRIBED.fullmatch(recorded)
            else ""
        )
        raise ServiceError(f"the template has no commit {recorded}{dirty}")

    def own_mirror(self, address: str, base: Path, recorded: str) -> Path | None:
        """Return the owner's template, if the service's address or commit is from it."""
        if self.template is None:
            return None
        ours = self.borrowed(repository(self.template.address))
        if self.template.named(address, base):
            return ours
        theirs = recorded_commit(self.mirror(address, base), recorded)
        return ours if theirs and commit_of(ours, theirs) == theirs else None

    def require_target(self, to: str | None) -> None:
        """Refuse a revision that the owner's template does not have. Raises FleetError."""
        if self.template:
            try:
                self.target(self.borrowed(repository(self.template.address)), to)
            except ServiceError as error:
                raise FleetError(str(error)) from None

    def target(self, mirror: Path, to: str | None) -> tuple[str, str]:
        """Return the full hash and the name of the wanted revision, by default the last release."""
        if (mirror, to) not in self.targets:
            self.targets[mirror, to] = self.find_target(mirror, to)
        return self.targets[mirror, to]

    def find_target(self, mirror: Path, to: str | None) -> tuple[str, str]:
        if to is None:
            released = final(tagged_releases(mirror))
            if not released:
                raise ServiceError("the template has no release")
            return released[-1].commit, released[-1].version
        for name in (to, f"refs/remotes/origin/{to}", f"v{to}"):
            if commit := commit_of(mirror, name):
                break
        else:
            message = f"the template has no tag, branch or commit {to}"
            raise FleetError(message) if self.template else ServiceError(message)
        if self.release_only and name not in tags(mirror):
            raise ServiceError(f"{to} is no release: a service updates to tags only")
        if to == "HEAD" and self.working_tree and self.template:
            directory = Path(self.template.address)
            if directory.is_dir() and git(directory, "status", "--porcelain").strip():
                return working_tree(mirror, directory, commit), "HEAD with changes"
        return commit, to

    def checkout(self, mirror: Path, commit: str) -> Path:
        """Return a directory with a commit's files. Copier reads the version from its tags."""
        key = (mirror, commit)
        if key not in self.checkouts:
            directory = self.directory / f"{mirror.stem}-{commit[:12]}"
            links = [] if mirror in self.own else links_of(mirror, commit)
            git(None, "clone", "--quiet", "--shared", "--no-checkout", "--", mirror, directory)
            git(directory, *at(directory), "checkout", "--quiet", "--detach", commit)
            require_inside(directory, links)
            self.checkouts[key] = directory
        return self.checkouts[key]


def recorded_commit(repository: Path, recorded: str) -> str | None:
    """Return the commit that an answers file names by a tag or a hash, and by nothing else."""
    if not RECORDED.fullmatch(recorded):
        return None
    found = commit_of(repository, f"refs/tags/{recorded}")
    if found is None and (HASH.fullmatch(recorded) or DESCRIBED.fullmatch(recorded)):
        found = commit_of(repository, recorded)
    return found


def tags(repository: Path) -> set[str]:
    """Return the tags that are versions."""
    listed = git(repository, *at(repository), "tag", "--list").split("\n")
    return {tag for tag in listed if as_version(tag)}


def tag_listed(source: Path, mirror: Path) -> None:
    """Make the missing tags of the releases in releases.toml, because a clone can lack tags."""
    if not (source / "releases.toml").is_file():
        return
    known = tags(mirror)
    for release in read_releases(source / "releases.toml"):
        if release.version not in known and commit_of(mirror, release.commit):
            git(mirror, *at(mirror), "tag", release.version, release.commit)


def working_tree(mirror: Path, directory: Path, head: str) -> str:
    """Commit the template's files as they are, in the mirror only, and return the commit."""
    env = {
        "GIT_DIR": str(mirror),
        "GIT_WORK_TREE": str(directory),
        "GIT_INDEX_FILE": str(mirror / "working-tree"),
        **{f"GIT_{who}_NAME": "trackbed-fleet" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "fleet@localhost" for who in ("AUTHOR", "COMMITTER")},
    }
    options = ("-c", "core.bare=false")
    git(directory, *options, "read-tree", head, env=env)
    git(directory, *options, "add", "--all", env=env)
    tree = git(directory, *options, "write-tree", env=env).strip()
    message = "The working tree"
    commit = git(
        directory, *options, "commit-tree", tree, "-p", head, "-m", message, env=env
    ).strip()
    git(mirror, *at(mirror), "update-ref", "refs/heads/trackbed-fleet-working-tree", commit)
    return commit


def questions(template: Template | None) -> set[str]:
    """Return the names of the questions in the owner's working tree, if it is there."""
    import yaml

    if template is None or not is_template(Path(template.address)):
        return set()
    for name in ("copier.yml", "copier.yaml"):
        file = Path(template.address) / name
        if file.is_file():
            try:
                document = yaml.safe_load(file.read_text(encoding="utf-8"))
            except yaml.YAMLError:
                return set()  # The file may include others, which only Copier can read
            return {key for key in document if not key.startswith("_")}
    return set()


@dataclass(frozen=True)
class Ownership:
    """Paths that belong to the template. A path that ends in / is a directory."""

    paths: tuple[str, ...]

    def owns(self, path: str) -> bool:
        return any(
            path.startswith(owned) if owned.endswith("/") else path == owned for owned in self.paths
        )


def read_ownership(file: Path) -> Ownership:
    """Read an ownership.toml. Raises FleetError if the file is mistaken or missing."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        paths = [path for table in document["template"] for path in table["paths"]]
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise FleetError(f"{file}: {error}") from None
    except KeyError as error:
        raise FleetError(f"{file}: there is no {error.args[0]}") from None
    if not all(isinstance(path, str) for path in paths):
        raise FleetError(f"{file}: paths are texts")
    return Ownership(tuple(paths))
