"""Runner of git, without questions, hooks and surprises.

A service's repository belongs to a stranger. So git works in repositories that are made here. They
borrow the service's objects and have none of its settings. The service's own repository is opened
only for names of commits and files, and for the one branch that an update makes.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from trackbed import bounded
from trackbed.errors import FleetError, ServiceError
from trackbed.files import read_within

TIMEOUT = 300
SOON = 60
"""Seconds for a quick question. A service's settings can make git wait for ever."""
OUTPUT = 64 * bounded.MEGABYTE
MEMORY = 4096 * bounded.MEGABYTE
FILE_SIZE = 4096 * bounded.MEGABYTE
"""Maximum bytes of a file that git writes, such as a pack."""

FILES = 200_000
BYTES = 2048 * bounded.MEGABYTE
"""Maximum number of files in a commit, and of their bytes together."""

SETTINGS = {
    # These settings could run a program
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.alternateRefsCommand": "true",
    "core.pager": "cat",
    "core.editor": "true",
    "sequence.editor": "true",
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "transfer.bundleURI": "false",
    "init.templateDir": "",
    # A service may commit a directory with HEAD, objects and refs, which is then no repository
    "safe.bareRepository": "explicit",
    # A person's own habits would change what an update does
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.autocrlf": "false",
    "core.untrackedCache": "false",
    "status.showUntrackedFiles": "normal",
    "merge.conflictStyle": "merge",
    "advice.detachedHead": "false",
    # An address may never answer
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
}
REACHING = re.compile(
    r"(url|credential|http|ssh|user)\..+|safe\.directory|core\.(sshcommand|gitproxy|askpass)"
)
"""Person's own settings that say how repositories are reached, and who commits."""

PROTOCOLS = "file:git:http:https:ssh"
STRANGERS_PROTOCOLS = "file:https:ssh"
"""Protocols for an address that only a service names.

Such an address is https or ssh. The person's own `url.*.insteadOf` can turn it into `file`.
"""

ELSEWHERE = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DEFAULT_HASH",
    "GIT_DIFF_OPTS",
    "GIT_DIR",
    "GIT_EXTERNAL_DIFF",
    "GIT_GLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_INDEX_FILE",
    "GIT_LITERAL_PATHSPECS",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_TEMPLATE_DIR",
    "GIT_WORK_TREE",
}
PERSONAL = {
    "GIT_CONFIG_GLOBAL": "TRACKBED_GIT_GLOBAL",
    "GIT_CONFIG_NOSYSTEM": "TRACKBED_GIT_NOSYSTEM",
}
"""Variables with the person's own settings, and where they are kept meanwhile."""

SSH = "-o BatchMode=yes -o ConnectTimeout=20 -o ForwardAgent=no"
OLDEST = (2, 38)
"""Oldest version of git that can be used, because it knows safe.bareRepository."""


def isolate() -> None:
    """Set the variables for git in this process and all that it starts, also for Copier."""
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    os.environ |= {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_PAGER": "cat",
        "GIT_EDITOR": "true",
        "GIT_ALLOW_PROTOCOL": PROTOCOLS,
    }
    own = reaching()
    if not any(key == "core.sshcommand" for key, _ in own):
        os.environ.setdefault("GIT_SSH_COMMAND", f"ssh {SSH}")
    # The person's settings include those that the caller has given in variables
    kept = [*own, *SETTINGS.items()]
    for number, (key, value) in enumerate(kept):
        os.environ[f"GIT_CONFIG_KEY_{number}"] = key
        os.environ[f"GIT_CONFIG_VALUE_{number}"] = value
    os.environ["GIT_CONFIG_COUNT"] = str(len(kept))
    for name, kept_as in PERSONAL.items():
        os.environ.setdefault(kept_as, os.environ.get(name, ""))
    os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    if bounded.resource:
        bounded.lower(bounded.resource.RLIMIT_FSIZE, FILE_SIZE)
        bounded.lower(bounded.resource.RLIMIT_DATA, MEMORY)
        bounded.lower(bounded.resource.RLIMIT_CORE, 0)


def number_of_settings() -> int:
    """Return the number of settings that git takes from variables."""
    try:
        return int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    except ValueError:
        return 0


def for_a_stranger() -> dict[str, str]:
    """Return the variables for an address that only a service names, which gets no secret.

    A helper that is a command, and a program that asks, give the same secret to everybody. Helpers
    that git knows by name, and those for one host, know whom they speak to.
    """
    count = number_of_settings()
    pairs = [
        (os.environ.get(f"GIT_CONFIG_KEY_{n}", ""), os.environ.get(f"GIT_CONFIG_VALUE_{n}", ""))
        for n in range(count)
    ]
    helpers = [
        (key, value)
        for key, value in pairs
        if re.fullmatch(r"credential\.(.+\.)?helper", key, re.IGNORECASE)
        and not (key.lower() == "credential.helper" and value.startswith(("!", "/")))
    ]
    headers = [
        (key, value)
        for key, value in pairs
        if re.fullmatch(r"http\..+\.extraheader", key, re.IGNORECASE)
    ]
    added = [
        ("core.askPass", ""),
        ("credential.helper", ""),
        *helpers,
        ("http.extraHeader", ""),
        *headers,
        ("http.cookieFile", ""),
    ]
    env = {"GIT_ALLOW_PROTOCOL": STRANGERS_PROTOCOLS, "GIT_ASKPASS": "", "SSH_ASKPASS": ""}
    for number, (key, value) in enumerate(added, start=count):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return env | {"GIT_CONFIG_COUNT": str(count + len(added))}


def reaching() -> list[tuple[str, str]]:
    """Return the person's own settings that are kept, without those of any repository."""
    nowhere = {"GIT_DIR": os.devnull, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        listed = git(None, "config", "--list", "-z", "--includes", env=nowhere)
    except ServiceError:
        return []
    entries = [entry.partition("\n") for entry in listed.split("\0") if entry]
    return [
        (key, value if equals else "true")
        for key, equals, value in entries
        if REACHING.fullmatch(key)
    ]


def git(
    directory: Path | None,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    whole: Mapping[str, str] | None = None,
    stdin: Path | None = None,
    output: int = OUTPUT,
    seconds: float = TIMEOUT,
    largest: int | None = None,
) -> str:
    """Run git, and return what it prints.

    Args:
        directory: where it works.
        arguments: its own.
        env: variables in addition to the environment.
        whole: another environment.
        stdin: a file that it reads.
        output: bytes that it may print.
        seconds: time that it has.
        largest: bytes of the largest file that it may write, in steps of half a kB.

    Raises:
        ServiceError: it failed with git's own message, took too long or printed too much.
    """
    name = next((str(word) for word in arguments if not str(word).startswith("-")), "")
    command = ["git", *map(str, arguments)]
    if largest and bounded.resource:
        command = ["sh", "-c", f'ulimit -f {largest // 512} && exec "$@"', "sh", *command]
    try:
        done = bounded.run(
            command,
            cwd=directory,
            env={**(whole or os.environ), "LC_ALL": "C.UTF-8", **(env or {})},
            stdin=stdin,
            seconds=seconds,
            output=output,
        )
    except bounded.Exceeded as error:
        raise ServiceError(f"git {name} {error}") from None
    except (OSError, ValueError) as error:
        raise ServiceError(f"git cannot be run: {error}") from None
    if done.code:
        said = complaint(done.err.decode("utf-8", "replace"))
        raise ServiceError(said or f"git {name} failed with code {done.code}")
    return done.out.decode("utf-8", "surrogateescape")


def complaint(stderr: str) -> str:
    """Return git's first error without the hints after it, or the line of ssh or a server before.

    That line counts if git says only that it could not read from the repository.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith(("fatal: ", "error: ")):
            said = line.split(": ", 1)[1]
            if number and said.startswith("Could not read from remote repository"):
                return lines[number - 1]
            return said
    return lines[-1] if lines else ""


@cache
def require_git() -> None:
    """Refuse a git that cannot be used.

    Raises:
        FleetError: git is missing, or so old that it opens repositories that a service commits.
    """
    try:
        said = git(None, "version")
    except ServiceError as error:
        raise FleetError(str(error)) from None
    found = re.search(r"(\d+)\.(\d+)", said)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        raise FleetError(f"git {OLDEST[0]}.{OLDEST[1]} or newer is needed: this is {said.strip()}")


def commit_of(repository: Path, revision: str) -> str | None:
    """Return the full hash of the commit that a revision names, if there is one."""
    if not revision or revision.startswith("-") or not revision.isprintable():
        return None
    try:
        return git(
            repository,
            *at(repository),
            "rev-parse",
            "--verify",
            "--quiet",
            f"{revision}^{{commit}}",
        ).strip()
    except ServiceError:
        return None


def links_of(repository: Path, commit: str) -> list[str]:
    """Return the symbolic links of a stranger's commit.

    Raises:
        ServiceError: the commit has so many files or bytes that it would fill the disk.
    """
    listed = git(repository, *at(repository), "ls-tree", "-r", "-l", "-z", "--full-tree", commit)
    links, total, number = [], 0, 0
    for entry in filter(None, listed.split("\0")):
        facts, name = entry.split("\t", 1)
        mode, _, _, size = facts.split()
        number += 1
        total += int(size) if size.isdigit() else 0
        if mode == "120000":
            links.append(name)
    if number > FILES or total > BYTES:
        raise ServiceError(
            f"{commit[:12]} has {number} files of {total // bounded.MEGABYTE} MB together: "
            f"more than {FILES} or {BYTES // bounded.MEGABYTE} MB"
        )
    return links


def at(repository: Path) -> list[str]:
    """Return the option that opens this repository, and no other that git finds in or above it."""
    inner = repository / ".git"
    return [f"--git-dir={inner if inner.exists() else repository}"]


# A service's own repository


def of_its_own(top: Path, *arguments: str) -> str:
    """Ask a service's repository about names of commits and files, which runs nothing."""
    return git(top, f"--git-dir={top / '.git'}", *arguments, seconds=SOON)


def own_path(top: Path, name: str) -> Path:
    """Return the path of a file of git's in a service's repository, which may be a worktree."""
    asked = of_its_own(top, "rev-parse", "--path-format=absolute", "--git-path", name)
    return Path(asked.removesuffix("\n"))


def tip(top: Path, branch: str | None = None) -> str:
    """Return the full hash of a branch's last commit, or of the one that is checked out.

    Raises:
        ServiceError: there is none.
    """
    name = f"refs/heads/{branch}" if branch else "HEAD"
    try:
        return of_its_own(top, "rev-parse", "--verify", "--quiet", name).strip()
    except ServiceError as error:
        if "failed with code" not in str(error):
            raise
        missing = f"there is no branch {branch}" if branch else "there is no commit"
        raise ServiceError(missing) from None


def borrow(top: Path, directory: Path, commit: str) -> Path:
    """Make a repository with a service's commit, and without the service's settings.

    Returns:
        The repository's directory of git, without files that are checked out.

    Raises:
        ServiceError: the service's repository cannot be read.
    """
    if "\n" in str(top):
        raise ServiceError("its path has a line break")
    kind = of_its_own(top, "rev-parse", "--show-object-format").strip()
    objects, shallow = own_path(top, "objects"), own_path(top, "shallow")
    git(
        None, "init", "--quiet", f"--object-format={kind}", "--initial-branch=main", "--", directory
    )
    inner = directory / ".git"
    (inner / "info").mkdir(exist_ok=True)
    (inner / "objects" / "info" / "alternates").write_bytes(os.fsencode(f"{objects}\n"))
    with suppress(OSError):
        commits = read_within(shallow.parent, Path("shallow"), OUTPUT)
        (inner / "shallow").write_bytes(commits)
    git(directory, f"--git-dir={inner}", "update-ref", "refs/heads/main", commit)
    return inner


CHECKOUT = ("core.autocrlf", "core.eol", "core.filemode", "core.ignorecase", "core.symlinks")
"""Settings that say how files were checked out, and that run nothing."""


def own_settings(top: Path) -> dict[str, str]:
    """Read the settings of a service's repository as data. None of them takes effect."""
    file = of_its_own(top, "rev-parse", "--path-format=absolute", "--git-path", "config")
    with suppress(ServiceError):
        listed = git(
            None, "config", f"--file={file.removesuffix(chr(10))}", "--list", "-z", "--no-includes"
        )
        entries = [entry.partition("\n") for entry in listed.split("\0") if entry]
        return {key: value if equals else "true" for key, equals, value in entries}
    return {}


def checkout_settings(top: Path) -> list[str]:
    """Return the options for a status like that of the person's own git."""
    own = own_settings(top)
    given = {"core.autocrlf": personal("core.autocrlf") or "false"}
    given |= {key: own[key] for key in CHECKOUT if key in own}
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    given["core.excludesfile"] = personal("core.excludesfile") or f"{home}/git/ignore"
    return [word for key, value in given.items() for word in ("-c", f"{key}={value}")]


@cache
def personal(key: str) -> str | None:
    """Return one of the person's own settings, but none of a repository."""
    env = {name: value for name, value in os.environ.items() if name not in PERSONAL}
    env |= {name: os.environ[kept] for name, kept in PERSONAL.items() if os.environ.get(kept)}
    env |= {"GIT_CONFIG_COUNT": "0", "GIT_DIR": os.devnull}
    try:
        return git(None, "config", "--get", key, whole=env).removesuffix("\n")
    except ServiceError:
        return None
