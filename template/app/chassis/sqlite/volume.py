# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Volume of the database, which is mounted, owned, writable, and locked by one service."""

import fcntl
import glob
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT, strip
from app.chassis.sqlite.settings import SQLiteSettings

logger = logging.getLogger(__name__)

MOUNTS: Final = Path("/proc/self/mountinfo")
WAIT_MESSAGE_EVERY: Final = 5.0
LOCK_POLL: Final = 0.02

FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
"""Flags to open what is locked, which never follow a symbolic link to another file."""


def prepare(settings: SQLiteSettings) -> None:
    """Make the database's directory usable, and give up root if APP_UID is set.

    Raises:
        StartupError: The volume is not mounted, the directory cannot be written, half of a
            database is in it, or DATABASE_URL names a directory.
    """
    database, directory = settings.database_path, settings.database_path.parent
    # Path.is_dir would raise where this user may not look into the directory
    if os.path.isdir(database):
        raise StartupError(
            f"Storage: DATABASE_URL names the directory {database}; "
            "add the name of a file in it, such as app.db."
        )
    if settings.production and settings.volume is not None:
        require_mount(settings.volume)
    if settings.app_uid is not None and os.geteuid() == 0:
        # Root touches only a path into which nobody else can have put a symbolic link
        top = settings.volume or directory
        make_directory(top)
        give_to(top, settings.app_uid)
        drop_to(settings.app_uid)
        require_readable(PROJECT_ROOT / "app")
    make_directory(directory)
    require_writable(directory)
    require_whole(database)


@contextmanager
def refusing(step: str, advice: str) -> Iterator[None]:
    """Turn an OSError into the one line of a refused start."""
    try:
        yield
    except OSError as error:
        raise StartupError(f"Storage: cannot {step}: {error.strerror}. {advice}") from None


class Mount(NamedTuple):
    """Line of the kernel's list of mounts (proc_pid_mountinfo(5))."""

    point: str
    kind: str


def mounts(file: Path = MOUNTS) -> list[Mount]:
    """Return every mount, or none on a system that has no such list (macOS).

    Only this list has bind mounts. Neither os.path.ismount nor a comparison of devices sees them.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        # The kernel writes a space, tab, newline and backslash as octal numbers
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4])
        found.append(Mount(point, after.split(" ")[0]))
    return found


def require_mount(volume: Path, file: Path = MOUNTS) -> None:
    """Refuse a volume path at which nothing is mounted, if there is a list of mounts."""
    points = [mount.point for mount in mounts(file)]
    if points and os.path.realpath(volume) not in points:
        raise StartupError(
            f"Storage: no volume is mounted at {volume}, so every deploy would lose the data. "
            f"Attach one there: railway volume add --mount-path {volume}"
        )


def make_directory(directory: Path) -> None:
    with refusing(f"create {directory}", ownership_advice()):
        directory.mkdir(parents=True, exist_ok=True)


def give_to(directory: Path, uid: int) -> None:
    """Make uid the owner of the directory and all below it, except for what it owns already.

    Root never follows a path into the directory, because the directory's owner could put a symbolic
    link there meanwhile.
    """
    advice = "Root needs the capability CHOWN for this; keep it, or unset APP_UID."
    with refusing(f"give {directory} to uid {uid}", advice):
        for _, directories, files, descriptor in os.fwalk(os.path.realpath(directory)):
            for name in (".", *directories, *files):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if found.st_uid != uid:
                    os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)


def drop_to(uid: int) -> None:
    """Become uid for good, with the group of the same number and no other."""
    advice = "Root needs the capabilities SETUID and SETGID for this; keep them, or unset APP_UID."
    with refusing(f"become uid {uid}", advice):
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    # Root's home cannot be read any more, and nothing here needs a home that can be written
    os.environ["HOME"] = tempfile.gettempdir()


def require_readable(code: Path) -> None:
    """Refuse code that the present user cannot read, before an import of it fails.

    An image has the file modes of the checkout that it was built from. A umask such as 027 keeps
    everybody but root out. The template's own Dockerfile opens these modes.
    """
    for path in chain([code], code.rglob("*")):
        readable = os.access(path, os.R_OK) and (path.is_file() or os.access(path, os.X_OK))
        if not readable:
            raise StartupError(
                f"Storage: {path} cannot be read as uid {os.geteuid()}. Let everybody read the "
                "image's files: chmod -R a+rX . before it is built, or as its last step."
            )


def require_writable(directory: Path) -> None:
    with (
        refusing(f"write to {directory} as uid {os.geteuid()}", ownership_advice()),
        tempfile.TemporaryFile(dir=directory),
    ):
        pass


def ownership_advice() -> str:
    if os.geteuid() == 0:
        return "Mount a writable directory there."
    return (
        "Railway mounts volumes owned by root: start the container as root (set RAILWAY_RUN_UID=0) "
        "with APP_UID set, so that it can take ownership and then drop root, "
        f"or give the directory to uid {os.geteuid()}."
    )


def require_whole(database: Path) -> None:
    """Refuse a write-ahead log without its database.

    The log holds the last commits. SQLite would delete it beside a new database, or replay it into
    a restored one. The service never leaves such a log, because it moves or deletes the log first.
    """
    log = beside(database, "-wal")
    if size(log) and not size(database):
        raise StartupError(
            f"Storage: {database} is {'empty' if database.exists() else 'missing'}, and "
            f"{log.name} beside it holds its last changes. Put the database back, or move the "
            "log away to start without them."
        )


def beside(database: Path, suffix: str) -> Path:
    """Return the path of a file that belongs to the database, such as its log (`-wal`)."""
    return database.with_name(f"{database.name}{suffix}")


def size(file: Path) -> int:
    """Return the size of the file in bytes, which is 0 if it is missing."""
    return file.stat().st_size if file.exists() else 0


def free_bytes(directory: Path) -> int:
    """Return the bytes that may still be written, or raise OSError if there is no directory."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def sync(path: Path) -> None:
    """Sync a file, or a directory's entries, which a rename or link does not do itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file or directory, and return False if another process has locked it."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_lock(path: Path, how: int = fcntl.LOCK_EX) -> int | None:
    """Return a descriptor that locks a file or directory until it is closed, or None."""
    descriptor = os.open(path, os.O_RDONLY | FLAGS)
    if take(descriptor, how):
        return descriptor
    os.close(descriptor)
    return None


def holder(database: Path) -> str | None:
    """Return who has locked the database, a service or a command, or None if nobody has."""
    path = beside(database, ".lock")
    try:
        descriptor = try_lock(path, fcntl.LOCK_SH)
    except OSError:
        return None
    if descriptor is None:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(200).strip() or "unknown"
    os.close(descriptor)
    return None


@contextmanager
def locked(database: Path, timeout: float = 0) -> Iterator[None]:
    """Lock the database for this process. Without a timeout, refuse at once if another holds it."""
    descriptor = acquire_lock(database, timeout)
    try:
        yield
    finally:
        os.close(descriptor)


def acquire_lock(database: Path, timeout: float) -> int:
    """Lock the database for this service alone, also across exec.

    During a deploy the previous container may still be finishing on the same volume, so this waits
    for it. The kernel releases the lock when the last process that inherited the descriptor has
    ended, however it ended.

    Args:
        database: Database file. The lock is a file beside it.
        timeout: Seconds to wait for another holder.

    Returns:
        The descriptor that holds the lock.

    Raises:
        StartupError: Another service still holds it after the timeout.
    """
    path, advice = beside(database, ".lock"), ownership_advice()
    if os.path.islink(path):
        advice = "It is a symbolic link, and writing to it would change another file; remove it."
    with refusing(f"open {path}", advice):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | FLAGS, 0o600)
    deadline, say_at = time.monotonic() + timeout, 0.0
    while not take(descriptor):
        now = time.monotonic()
        if now >= min(say_at, deadline):
            other = holder(database) or "unknown"
        if now >= deadline:
            os.close(descriptor)
            raise StartupError(
                f"Storage: {database} is in use by another service ({other}). "
                "Stop that one first, or let it finish and start again."
            )
        if now >= say_at:
            told = "Waiting for the service that still uses %s (%s), up to %.0f s"
            logger.info(told, database, other, deadline - now)
            say_at = now + WAIT_MESSAGE_EVERY
        time.sleep(LOCK_POLL)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{socket.gethostname()}, process {os.getpid()}".encode(), 0)
    os.set_inheritable(descriptor, True)
    adopt(database, timeout)
    return descriptor


def strays(database: Path) -> list[Path]:
    """Return the databases beside this one that only have more white space in their names.

    A DATABASE_URL that ended in white space made them, before that was removed.
    """
    found = database.parent.glob(f"{glob.escape(database.name)}*")
    return [path for path in found if path != database and strip(path.name) == database.name]


def adopt(database: Path, timeout: float) -> None:
    """Give the stray database its right name, unless a database has that name.

    The log goes first. A database without its log would lack its last changes, and a log without
    its database is refused at the next start.

    Raises:
        StartupError: There are several, or another service uses the stray one.
    """
    found = strays(database)
    if database.exists() or not found:
        return
    if len(found) > 1:
        raise StartupError(f"Storage: {found} might all be {database}; rename the right one.")
    stray = found[0]
    with locked(stray, timeout):
        logger.warning("Storage: %s is now named %s", ascii(str(stray)), database)
        for suffix in ("-wal", ""):
            if beside(stray, suffix).exists():
                beside(stray, suffix).rename(beside(database, suffix))
        for suffix in ("-shm", ".lock"):
            beside(stray, suffix).unlink(missing_ok=True)
