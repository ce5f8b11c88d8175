"""S3 servers on this machine, with credentials, as the bucket of a replica."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support import tool
from support.service import DEADLINE, free_port

KEY, SECRET = "key", "hunter2-is-the-secret"
BUCKET = "copies"

Command = Callable[[Path, int], list[str | Path]]


class Bucket:
    """A server that can go down and come back with what it had."""

    def __init__(self, directory: Path, command: Command) -> None:
        self.directory = directory
        self.port = free_port()
        self.command = command
        self.log = directory.with_name(f"{directory.name}.log")
        self.up()

    @property
    def variables(self) -> dict[str, str]:
        """What a service needs to know."""
        return {
            "LITESTREAM_BUCKET": BUCKET,
            "LITESTREAM_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "LITESTREAM_REGION": "us-east-1",
            "LITESTREAM_ACCESS_KEY_ID": KEY,
            "LITESTREAM_SECRET_ACCESS_KEY": SECRET,
            "LITESTREAM_FORCE_PATH_STYLE": "true",
            # what people have set for other tools must not get in Litestream's way
            "AWS_CA_BUNDLE": "/nonexistent/bundle.crt",
        }

    def up(self, tries: int = 3) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command(self.directory, self.port),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + DEADLINE
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                # a port that was free when it was chosen may be taken by now
                told = self.log.read_text()
                assert tries > 1, told
                assert "already in use" in told, told
                self.up(tries - 1)
                return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def down(self) -> None:
        self.process.kill()
        self.process.wait()


def rclone(directory: Path, port: int) -> list[str | Path]:
    address = f"127.0.0.1:{port}"
    options = ["--auth-key", f"{KEY},{SECRET}", "--addr", address]
    return [tool("rclone"), "serve", "s3", *options, directory]


def seaweedfs(directory: Path, port: int) -> list[str | Path]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    configuration = directory / "identities.json"
    configuration.write_text(json.dumps({"identities": [identity]}))
    others = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = [f"-{name}.grpc={free_port()}" for name in others]
    ports += [f"-{name}={free_port()}" for name in others[:3]]
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.port={port}"]
    unused = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    return [
        tool("weed"),
        "server",
        f"-dir={directory}",
        *options,
        *ports,
        *unused,
        f"-s3.config={configuration}",
        "-master.volumeSizeLimitMB=64",
    ]


@contextmanager
def serving(kind: str, directory: Path) -> Iterator[Bucket]:
    """A server of the kind, with an empty bucket."""
    directory.mkdir()
    bucket = Bucket(directory, {"rclone": rclone, "seaweedfs": seaweedfs}[kind])
    try:
        make(bucket)
        yield bucket
    finally:
        bucket.down()
        shutil.rmtree(directory, ignore_errors=True)


def make(bucket: Bucket) -> None:
    """Create the bucket, as its owner would; a server takes a while until it can."""
    remote = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ACCESS_KEY_ID": KEY,
        "SECRET_ACCESS_KEY": SECRET,
        "ENDPOINT": bucket.variables["LITESTREAM_ENDPOINT"],
    }
    environment = {f"RCLONE_CONFIG_TEST_{name}": value for name, value in remote.items()}
    command = [tool("rclone"), "--config", os.devnull, "mkdir", f"test:{BUCKET}"]
    deadline = time.monotonic() + DEADLINE
    while True:
        done = subprocess.run(
            command, env={"PATH": os.defpath, **environment}, capture_output=True, encoding="utf-8"
        )
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, done.stderr + bucket.log.read_text()
        time.sleep(0.2)
