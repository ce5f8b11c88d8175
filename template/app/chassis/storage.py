# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Directory of the database, which is mounted, owned, writable, and locked by one service."""

import errno
import fcntl
import glob
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Final

from app.chassis.errors import StartupError
from app.chassis.settings import PROJECT_ROOT, ChassisSettings, strip

logger = logging.getLogger(__name__)

MOUNTS: Final = Path("/proc/self/mountinfo")
WAIT_MESSAGE_EVERY: Final = 5.0
LOCK_POLL: Final = 0.02

FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
"""Flags to open the lock's file, which never follow a symbolic link to another file."""


def prepare(settings: ChassisSettings) -> None:
    """Make the database's directory usable, and give up root if APP_UID is set.

    Raises:
        StartupError: The volume is not mounted, the directory cannot be written, half of a
            database is in it, or DATABASE_URL names a directory.
    """
    if os.path.isdir(settings.database_path):
        raise StartupError(
            f"Storage: DATABASE_URL names the directory {settings.database_path}; "
            "add the name of a file in it, such as app.db."
        )
    directory = settings.database_path.parent
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
    require_whole(settings.database_path)


def require_whole(database: Path) -> None:
    """Refuse a write-ahead log without its database.

    The log holds the last commits. SQLite would delete it beside a new database, or replay it into
    a restored one. The service never leaves such a log, because it moves or deletes the log first.
    """
    log = database.with_name(f"{database.name}-wal")
    if size(log) and not size(database):
        raise StartupError(
            f"Storage: {database} is {'empty' if database.exists() else 'missing'}, and "
            f"{log.name} beside it holds its last changes. Put the database back, or move the "
            "log away to start without them."
        )


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def require_mount(volume: Path, mounts: Path = MOUNTS) -> None:
    """Refuse a volume path at which nothing is mounted.

    Neither os.path.ismount nor a comparison of devices sees a bind mount. So this reads the
    kernel's list (proc_pid_mountinfo(5)). Without such a list (macOS), nothing is refused.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    mounted = {unescape_mount(line.split(" ")[4]) for line in lines}
    if os.path.realpath(volume) not in mounted:
        raise StartupError(
            f"Storage: no volume is mounted at {volume}, so every deploy would lose the data. "
            f"Attach one there: railway volume add --mount-path {volume}"
        )


def unescape_mount(field: str) -> str:
    """Undo the kernel's octal escapes for space, tab, newline and backslash."""
    for character in (" ", "\t", "\n", "\\"):
        field = field.replace(f"\\{ord(character):03o}", character)
    return field


def make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"Storage: cannot create {directory}: {error.strerror}. {ownership_advice()}"
        ) from None


def give_to(directory: Path, uid: int) -> None:
    """Make uid the owner of the directory and all below it, except for what it owns already.

    Root never follows a path into the directory, because the directory's owner could put a symbolic
    link there meanwhile.
    """
    try:
        for _, directories, files, descriptor in os.fwalk(os.path.realpath(directory)):
            for name in (".", *directories, *files):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if found.st_uid != uid:
                    os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
    except OSError as error:
        raise StartupError(
            f"Storage: cannot give {directory} to uid {uid}: {error.strerror}. "
            "Root needs the capability CHOWN for this; keep it, or unset APP_UID."
        ) from None


def drop_to(uid: int) -> None:
    """Become uid for good, with the group of the same number and no other."""
    try:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    except OSError as error:
        raise StartupError(
            f"Storage: cannot become uid {uid}: {error.strerror}. Root needs the capabilities "
            "SETUID and SETGID for this; keep them, or unset APP_UID."
        ) from None
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
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise StartupError(
            f"Storage: cannot write to {directory} as uid {os.geteuid()}: {error.strerror}. "
            f"{ownership_advice()}"
        ) from None


def ownership_advice() -> str:
    if os.geteuid() == 0:
        return "Mount a writable directory there."
    return (
        "Railway mounts volumes owned by root: start the container as root (set RAILWAY_RUN_UID=0) "
        "with APP_UID set, so that it can take ownership and then drop root, "
        f"or give the directory to uid {os.geteuid()}."
    )


def is_locked(database: Path) -> bool:
    """Return whether a service, or a command that changes the database, holds it. Keep no lock."""
    try:
        descriptor = os.open(lock_file(database), os.O_RDONLY | FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock_file(database: Path) -> Path:
    return database.with_name(f"{database.name}.lock")


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Lock the database while a command changes it, and refuse at once if a service holds it."""
    descriptor = acquire_lock(database, timeout=0)
    try:
        yield
    finally:
        os.close(descriptor)


def acquire_lock(
    database: Path,
    timeout: float,
    *,
    holder: int | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Lock the database for this service alone, also across exec.

    During a deploy the previous container may still be finishing on the same volume, so this waits
    for it. The kernel releases the lock when the last process that inherited the descriptor has
    ended, however it ended.

    Args:
        database: Database file. The lock is a file beside it.
        timeout: Seconds to wait for another holder.
        holder: Process id that others are told, by default this process's.
        meanwhile: Function to call whenever this tells that it waits.

    Returns:
        The descriptor that holds the lock.

    Raises:
        StartupError: Another service still holds it after the timeout.
    """
    path = lock_file(database)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | FLAGS, 0o600)
    except OSError as error:
        advice = ownership_advice()
        if error.errno == errno.ELOOP:
            advice = "It is a symbolic link, which would be written through; remove it."
        raise StartupError(f"Storage: cannot open {path}: {error.strerror}. {advice}") from None
    start = said = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            now = time.monotonic()
        other = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
        if now - start >= timeout:
            os.close(descriptor)
            raise StartupError(
                f"Storage: {database} is in use by another service ({other}). "
                "Stop that one first, or let it finish and start again."
            )
        if said == start or now - said >= WAIT_MESSAGE_EVERY:
            logger.info(
                "Waiting for the service that still uses %s (%s), up to %.0f s",
                database,
                other,
                timeout - (now - start),
            )
            said = now
            meanwhile()
        time.sleep(LOCK_POLL)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{socket.gethostname()}, process {holder or os.getpid()}".encode(), 0)
    os.set_inheritable(descriptor, True)
    adopt(database, timeout)
    return descriptor


def strays(database: Path) -> list[Path]:
    """Return the databases beside this one that only have more white space in their names.

    A DATABASE_URL that ended in white space made them, before that was removed.
    """
    beside = database.parent.glob(f"{glob.escape(database.name)}*")
    return [path for path in beside if path != database and strip(path.name) == database.name]


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
    descriptor = acquire_lock(stray, timeout)
    logger.warning("Storage: %s is now named %s", ascii(str(stray)), database)
    for suffix in ("-wal", ""):
        part = stray.with_name(f"{stray.name}{suffix}")
        if part.exists():
            part.rename(database.with_name(f"{database.name}{suffix}"))
    for suffix in ("-shm", ".lock"):
        stray.with_name(f"{stray.name}{suffix}").unlink(missing_ok=True)
    os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Sync the directory's entries to the disk. A rename is not on the disk when it returns."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
