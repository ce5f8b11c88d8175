"""Reading of a service's files, without following a link that leads somewhere else."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from trackbed.errors import ServiceError

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
DIRECTORY = getattr(os, "O_DIRECTORY", 0) | NOFOLLOW
PIECE = 2**20
REGULAR = NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


@contextmanager
def directory_within(root: Path, name: PurePath) -> Iterator[int]:
    """Open a directory below another one.

    Raises:
        ServiceError: a part of the way is a symbolic link.
        OSError: it is not there.
    """
    opened = os.open(root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        for part in name.parts:
            try:
                inner = os.open(part, os.O_RDONLY | DIRECTORY, dir_fd=opened)
            except OSError as error:
                if stat.S_ISLNK(os.stat(part, dir_fd=opened, follow_symlinks=False).st_mode):
                    raise ServiceError(f"{part} is a symbolic link: not followed") from None
                raise error from None
            os.close(opened)
            opened = inner
        yield opened
    finally:
        os.close(opened)


def read_in(directory: int, name: str, limit: int) -> bytes:
    """Read a regular file of a directory that is open.

    Args:
        directory: the open directory.
        name: the file in it.
        limit: bytes that it may have.

    Raises:
        ServiceError: it is no regular file, or too large.
        OSError: it is not there, or may not be read.
    """
    try:
        opened = os.open(name, os.O_RDONLY | REGULAR, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ServiceError(f"{name} is a symbolic link: not followed") from None
        if error.errno == errno.ENXIO:
            raise ServiceError(f"{name} is no regular file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise ServiceError(f"{name} is no regular file")
        data = bytearray()
        while len(data) <= limit and (more := os.read(opened, PIECE)):
            data += more
    finally:
        os.close(opened)
    if len(data) > limit:
        raise ServiceError(f"{name} is larger than {limit // 1024} kB")
    return bytes(data)


def read_within(root: Path, name: PurePath, limit: int) -> bytes:
    """Read a regular file below a directory. Raises as `read_in` does."""
    with directory_within(root, name.parent) as directory:
        return read_in(directory, name.name, limit)


def require_inside(top: Path, links: list[str]) -> None:
    """Refuse symbolic links by which a write or a read would leave a repository.

    Raises:
        ServiceError: one of them leads out, or to git's own files.
    """
    inside = os.path.realpath(top)
    for link in links:
        target = os.path.realpath(top / link)
        within = os.path.relpath(target, inside).split(os.sep)
        if within[0] in ("..", ".git"):
            raise ServiceError(f"a symbolic link leads out of the repository: {link}")
