"""A volume of its own for a test, which can be unmounted, filled, broken and copied."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.service import DEADLINE


def run(*command: str | Path, codes: tuple[int, ...] = (0,)) -> str:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        command, env={"PATH": path}, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode in codes, (command, done.returncode, done.stderr)
    return done.stdout


@dataclass
class Device:
    """An ext4 file system in a file, which keeps its data while it is not mounted."""

    image: Path
    mountpoint: Path
    loop: str

    @classmethod
    @contextmanager
    def attached(cls, image: Path, mountpoint: Path) -> Iterator["Device"]:
        """The file system in an image, mounted; mounting it replays its journal."""
        mountpoint.mkdir(exist_ok=True)
        device = cls(image, mountpoint, run("losetup", "--find", "--show", image).strip())
        try:
            device.mount()
            yield device
        finally:
            while os.path.ismount(mountpoint):
                device.unmount("-l")
            run("losetup", "-d", device.loop)

    @classmethod
    @contextmanager
    def made(cls, image: Path, mountpoint: Path) -> Iterator["Device"]:
        """A new file system, mounted."""
        with image.open("wb") as file:
            file.truncate(64 * 1024 * 1024)
        run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        with cls.attached(image, mountpoint) as device:
            yield device

    def mount(self) -> None:
        # commit: nothing is written to the disk that no program has asked for
        options = "errors=remount-ro,commit=300"
        run("mount", "-o", options, self.loop, self.mountpoint)

    def unmount(self, *options: str) -> None:
        run("umount", *options, self.mountpoint)
