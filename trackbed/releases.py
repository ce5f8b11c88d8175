"""Releases of the template, and the one that a service records."""

import re
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from packaging.version import Version

from trackbed.errors import FleetError
from trackbed.git import at, git
from trackbed.model import Release

DESCRIBED = re.compile(r"(?P<tag>.+)-(?P<distance>[0-9]{1,6})-g(?P<hash>[0-9a-f]{4,64})")
HASH = re.compile(r"[0-9a-f]{7,64}")
LENGTH = 100
"""Maximum number of characters of a text that is taken for a version."""


@dataclass(frozen=True)
class Recorded:
    """Release and the commits after it that `_commit` records, or why they are unknown."""

    release: Release | None = None
    version: str | None = None
    distance: int = 0
    unknown: str | None = None


def as_version(text: str) -> Version | None:
    try:
        return Version(text) if len(text) <= LENGTH else None
    except ValueError:  # A number may have more digits than Python reads
        return None


def read_releases(file: Path) -> list[Release]:
    """Return the releases of a releases.toml, the oldest first.

    Raises:
        FleetError: the file is mistaken.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        releases = [
            Release(entry["version"], entry["commit"], entry["date"], entry.get("summary", ""))
            for entry in document.get("release", [])
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FleetError(f"{file}: {error}") from None
    except KeyError as error:
        raise FleetError(f"{file}: a release has no {error.args[0]}") from None
    for release in releases:
        if not isinstance(release.version, str) or as_version(release.version) is None:
            raise FleetError(f"{file}: {release.version!r} is no version")
        if not isinstance(release.date, date) or not isinstance(release.commit, str):
            raise FleetError(f"{file}: {release.version} needs a date and a commit")
    return sorted(releases, key=lambda release: Version(release.version))


FORMAT = "%00".join(
    [
        "%(refname:short)",
        "%(objecttype) %(objectname)",
        "%(*objecttype) %(*objectname)",
        "%(creatordate:short)",
        "%(subject)",
    ]
)


def tagged_releases(repository: Path) -> list[Release]:
    """Return the releases of a template that has only tags. Tags of no commit do not count.

    Raises:
        ServiceError: it is no repository.
    """
    releases = []
    listed = git(repository, *at(repository), "for-each-ref", "refs/tags", f"--format={FORMAT}")
    for line in listed.split("\n"):
        tag, _, rest = line.partition("\0")
        if not rest or as_version(tag) is None:
            continue
        own, tagged, day, summary = rest.split("\0", 3)
        kind, _, commit = (tagged if tagged.strip() else own).partition(" ")
        with suppress(ValueError):  # A tag may have a time that no calendar has
            if kind == "commit":
                releases.append(Release(tag, commit, date.fromisoformat(day), summary))
    return sorted(releases, key=lambda release: Version(release.version))


def recognize(recorded: object, releases: Sequence[Release]) -> Recorded:
    """Return the release that a service has.

    `_commit` is a tag, a tag with commits after it, or a hash.
    """
    if recorded is None or not str(recorded).strip():
        return Recorded(unknown="no _commit: made from a directory without git")
    text = str(recorded).strip()
    if len(text) > 2 * LENGTH:
        return Recorded(unknown=f"{text[:LENGTH]}... is no version")
    distance = 0
    if match := DESCRIBED.fullmatch(text):
        text, distance = match["tag"], int(match["distance"])
    version = as_version(text)
    for release in releases:
        # Version 0.4 is the same as 0.4.0 but names no tag, so nothing can be updated from it
        if version is not None and text.removeprefix("v") == release.version.removeprefix("v"):
            return Recorded(release, release.version, distance)
    if HASH.fullmatch(text):
        for release in releases:
            if release.commit.startswith(text):
                return Recorded(release, release.version)
        return Recorded(unknown=f"commit {text[:12]} is no release")
    if version is None:
        return Recorded(unknown=f"{text} is no version")
    plain = text.removeprefix("v")
    unknown = f"{plain} is not among the known releases"
    if releases:  # Somebody has written the version there by hand
        return Recorded(unknown=unknown)
    return Recorded(None, plain, distance, unknown)


def behind(recorded: Recorded, releases: Sequence[Release]) -> int | None:
    """Return the number of newer releases, without prereleases."""
    if recorded.version is None or not releases:
        return None
    mine = Version(recorded.version)
    return sum(Version(release.version) > mine for release in final(releases))


def final(releases: Sequence[Release]) -> list[Release]:
    return [release for release in releases if not Version(release.version).is_prerelease]
