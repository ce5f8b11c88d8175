# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Checks that the volume is there, is the right one, can be written and has room."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from app.chassis import backup, storage
from app.chassis.checks.finding import Finding, failed, ok, skipped, warning
from app.chassis.errors import StartupError
from app.chassis.settings import CoreSettings

LOST_WITH_THE_CONTAINER: Final = frozenset({"overlay", "aufs", "tmpfs", "ramfs", "squashfs"})
WITHOUT_RELIABLE_LOCKS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"})

CLOCK_TOLERANCE: Final = 60.0
"""Seconds that a file's time may be ahead of the clock."""


class Mount(NamedTuple):
    """Line of the kernel's list of mounts (proc_pid_mountinfo(5))."""

    point: str
    kind: str


def check(settings: CoreSettings) -> Iterator[Finding]:
    """Check this machine's file systems."""
    directory = settings.database_path.parent
    yield database_path(settings)
    yield mounted(settings)
    yield file_system(settings)
    if not directory.is_dir():
        yield skipped("volume.writable", f"{directory} does not exist yet; the start creates it")
        return
    yield read_only(directory)
    yield writable(directory)
    yield space(settings)
    yield clock(directory)


def database_path(settings: CoreSettings) -> Finding:
    """Check that the next deploy keeps the database."""
    database, volume = settings.database_path, settings.volume
    if others := storage.strays(database):
        return warning(
            "database.path",
            f"{str(others[0])!a} lies beside {database}, and is not used",
            "a DATABASE_URL that ended in white space made it: look what is in it, and delete it",
        )
    if volume is None:
        if settings.production:
            return warning(
                "database.path",
                f"{database} is on no volume that is known",
                "set VOLUME_PATH to where the volume is mounted, so that it can be checked",
            )
        return ok("database.path", f"{database}, on this machine")
    if not database.is_relative_to(os.path.normpath(volume)):
        return warning(
            "database.path",
            f"{database} is not below {volume}",
            f"set DATABASE_URL to sqlite:///{volume}/app.db",
        )
    return ok("database.path", f"{database} is on the volume")


def mounted(settings: CoreSettings) -> Finding:
    if settings.volume is None:
        return skipped("volume.mounted", "no volume is configured")
    try:
        storage.require_mount(settings.volume)
    except StartupError:
        return failed(
            "volume.mounted",
            f"nothing is mounted at {settings.volume}, so every deploy would lose the data",
            f"attach one: railway volume add --mount-path {settings.volume}",
        )
    return ok("volume.mounted", f"{settings.volume} is a mount")


def mounts(file: Path = storage.MOUNTS) -> list[Mount]:
    """Return every mount, or none on a system that has no such list (macOS)."""
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    return [
        Mount(storage.unescape_mount(line.split(" ")[4]), line.partition(" - ")[2].split(" ")[0])
        for line in lines
    ]


def mount_of(path: Path, known: list[Mount]) -> Mount | None:
    """Return the mount that a path lies on. The longest one counts, and of equal ones the last."""
    real = Path(os.path.realpath(path))
    found = None
    for mount in known:
        if real.is_relative_to(mount.point) and (
            found is None or len(mount.point) >= len(found.point)
        ):
            found = mount
    return found


def file_system(settings: CoreSettings) -> Finding:
    """Check that the database's own mount keeps data and locks. A bind mount counts as one."""
    name = "volume.file-system"
    known = mounts()
    mount = mount_of(settings.database_path.parent, known)
    if mount is None:
        return skipped(name, "this system has no list of mounts")
    place = f"{settings.database_path.parent} is on {mount.kind}, mounted at {mount.point}"
    if mount.kind in LOST_WITH_THE_CONTAINER:
        verdict = f"{place}, which is lost with the container"
        if settings.production:
            return failed(name, verdict, "put the database on a volume")
        return ok(name, verdict)
    if mount.kind in WITHOUT_RELIABLE_LOCKS:
        return warning(
            name,
            f"{place}, where locks of several processes are not reliable",
            "use a volume with a local file system (https://sqlite.org/faq.html#q5)",
        )
    volume = settings.volume and mount_of(settings.volume, known)
    if volume and volume.point != mount.point:
        return warning(
            name,
            f"{place}, and not on the volume's mount {volume.point}",
            "remove the mount in between, or move the database",
        )
    return ok(name, place)


def read_only(directory: Path) -> Finding:
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return failed(
            "volume.read-only", f"{directory} is mounted read-only", "mount it for writing"
        )
    return ok("volume.read-only", f"{directory} is not mounted read-only")


def writable(directory: Path) -> Finding:
    try:
        storage.require_writable(directory)
    except StartupError as error:
        verdict, _, advice = str(error).removeprefix("Storage: ").partition(". ")
        return failed("volume.writable", verdict, advice)
    return ok("volume.writable", f"uid {os.geteuid()} can write to {directory}")


def space(settings: CoreSettings) -> Finding:
    """Check that there is room to go on writing, and for a copy beside the database."""
    directory = settings.database_path.parent
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    needed = backup.total_size(settings.database_path)
    shown = f"{free / 1e6:.0f} MB free at {directory}"
    if free < settings.min_free_bytes:
        return failed("volume.space", f"only {shown}", "grow the volume, or delete old copies")
    if free < settings.low_free_bytes:
        return warning("volume.space", f"only {shown}", "grow the volume, or delete old copies")
    if free < needed + settings.min_free_bytes:
        return warning(
            "volume.space",
            f"{shown}, too little for a copy of the database ({needed / 1e6:.0f} MB)",
            "grow the volume before you need backup or restore there",
        )
    return ok("volume.space", shown)


def newest_copy(database: Path) -> Finding:
    """Report the time of the newest copy on the volume."""
    found = backup.copies(backup.backups_directory(database), database)
    if not found:
        return skipped(
            "backup.newest", "no copy on the volume; `python -m app backup --keep 7` makes one"
        )
    made = found[0].made
    return ok("backup.newest", f"{found[0].path} is of {made:%Y-%m-%d %H:%M:%S} UTC")


def clock(directory: Path) -> Finding:
    """Check that the clock did not go back.

    The names of backups and the signatures for buckets depend on the time.
    """
    ahead = [
        path.name
        for path in directory.iterdir()
        if path.lstat().st_mtime > time.time() + CLOCK_TOLERANCE
    ]
    if ahead:
        return warning("clock", f"{ahead[0]} was written in the future", "set the machine's clock")
    return ok("clock", "no file is younger than the clock")
