"""The container image: what a deploy has to move, and what takes the room in it."""

import gzip
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import sides
from benchmarks.runs import Effort, MissingTool, Result, Target

LAB = sides.ROOT / "scripts" / "container-lab"
IMAGE = "localhost/trackbed-lab"
MEGABYTE = 10**6
PUBLISHED = (43.0, 118.1)
"""MB of python:3.13-slim-trixie, compressed and unpacked, in August 2026 for amd64, as
github.com/docker-library/repo-info lists it under repos/python, remote and local."""
PACKAGE = re.compile(r"app/\.venv/(?:lib/[^/]+/site-packages/([^/]+)|(bin)/)")


@dataclass
class Layer:
    """Bytes, as they are moved and as they lie on the disk."""

    packed: int
    unpacked: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    """Of the directories at the top, and of the packages that the service needs."""
    bytecode: int = 0


def image(effort: Effort) -> Result:
    """The image of a project with everything, built by its Dockerfile. Needs root."""
    if os.geteuid():
        raise MissingTool("The image is built without a daemon, and that needs root")
    result = Result()
    with sides.workspace() as directory:
        project = directory / "project"
        sides.render(project, "--data-file", sides.ROOT / "presets" / "everything.yml")
        sides.uv("lock", cwd=project)
        sides.run(LAB, project, "/data", BUILD_ONLY="1")
        base, *own = layers(push(directory / "image"))
    for what, some in (("base image", [base]), ("the project's layers", own)):
        packed, unpacked = megabytes(some)
        result.add(f"{what}, compressed", "MB", [packed])
        result.add(f"{what}, unpacked", "MB", [unpacked])
    packed, unpacked = megabytes(own)
    result.notes.append(
        "The base is made of Debian's packages. On python:slim as it is published the image would "
        f"have {PUBLISHED[0] + packed:.1f} MB, unpacked {PUBLISHED[1] + unpacked:.1f} MB."
    )
    whole = [base, *own]
    packed, unpacked = megabytes(whole)
    result.add("image, compressed", "MB", [packed], target=Target("at most", 65, "value"))
    result.add("image, unpacked", "MB", [unpacked], target=Target("at most", 190, "value"))
    for number, layer in enumerate(whole):
        sizes = f"{layer.packed / MEGABYTE:.1f} MB, unpacked {layer.unpacked / MEGABYTE:.1f} MB"
        result.notes.append(f"Layer {number}: {sizes}; bytecode {layer.bytecode / MEGABYTE:.1f} MB")
        largest = [
            f"{name} {size / MEGABYTE:.1f}"
            for name, size in layer.parts.most_common(25)
            if size > MEGABYTE / 2
        ]
        if largest:
            result.notes.append(f"Its largest parts, MB unpacked: {', '.join(largest)}")
    return result


def megabytes(some: Sequence[Layer]) -> tuple[float, float]:
    """Packed and unpacked."""
    packed, unpacked = sum(one.packed for one in some), sum(one.unpacked for one in some)
    return packed / MEGABYTE, unpacked / MEGABYTE


def push(directory: Path) -> Path:
    """The image as a registry would get it."""
    lab = os.environ.get("CONTAINER_LAB", "/var/tmp/trackbed-container-lab")
    store = ["--root", f"{lab}/root", "--runroot", f"{lab}/run", "--storage-driver", "overlay"]
    options = ["push", "--quiet", "--format", "oci", IMAGE, f"oci:{directory}"]
    sides.run("buildah", *store, *options)
    return directory


def layers(directory: Path) -> Iterator[Layer]:
    def read(digest: str) -> Path:
        return directory / "blobs" / digest.replace(":", "/")

    index = json.loads((directory / "index.json").read_text())
    manifest = json.loads(read(index["manifests"][0]["digest"]).read_text())
    for described in manifest["layers"]:
        if not described["mediaType"].endswith("+gzip"):
            raise RuntimeError(f"A layer is not compressed: {described['mediaType']}")
        layer = Layer(described["size"])
        with gzip.open(read(described["digest"])) as file, tarfile.open(fileobj=file) as archive:
            for member in archive:
                count(layer, member.name, member.size)
        yield layer


def count(layer: Layer, name: str, size: int) -> None:
    layer.unpacked += size
    if name.endswith(".pyc"):
        layer.bytecode += size
    found = PACKAGE.match(name)
    part = (found[1] or f".venv/{found[2]}") if found else "/".join(name.split("/")[:2])
    layer.parts[part] += size
