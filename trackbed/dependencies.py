"""Dependencies of a service in pyproject.toml, taken out of its lists and put back."""

import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

MANIFEST = "pyproject.toml"
TABLES = ("project", "dependency-groups")
TABLE = re.compile(r"\[([\w.-]+)\]\s*")
OPENING = re.compile(r"([\w-]+) = \[\s*")
ENTRY = re.compile(r"""(\s+(["'])(?P<what>.+)\2),?(\s*(#.*)?)""")

Lists = dict[tuple[str, str], list[str]]


def set_aside(project: Path, rendered: Path) -> Lists:
    """Take the dependencies that somebody has added out of a project's lists.

    Args:
        project: the project whose lists are changed.
        rendered: the project as its version renders it.

    Returns:
        The lines by table and list, or nothing if none was added.
    """
    mine, plain = read(project), read(rendered)
    own: Lists = {}
    kept = []
    known = {place: {name_of(line) for line in found} for place, found in lists(plain).items()}
    for place, line in placed(mine):
        name = name_of(line)
        if place in known and name and name not in known[place]:
            own.setdefault(place, []).append(with_comma(line))
        else:
            kept.append(line)
    if own:
        write(project, kept)
    return own


def put_back(project: Path, own: Lists) -> bool:
    """Add lines at the end of the lists that they came from.

    Returns:
        False if a list is gone, or names one of the packages already.
    """
    lines = read(project)
    there = lists(lines)
    for place, added in own.items():
        names = {name_of(line) for line in there.get(place, [])}
        if place not in there or names & {name_of(line) for line in added}:
            return False
    done: list[str] = []
    before: tuple[str, str] | None = None
    for place, line in placed(lines):
        if before is not None and place is None and before in own:
            done += own[before]
        done.append(line)
        before = place
    write(project, done)
    return True


def placed(lines: list[str]) -> Iterator[tuple[tuple[str, str] | None, str]]:
    """Yield each line with the list of dependencies that it is in, if any."""
    table, name = "", None
    for line in lines:
        if name is not None and line.startswith("]"):
            name = None
        yield ((table, name) if name is not None else None), line
        if name is None and (match := TABLE.fullmatch(line)):
            table = match[1]
        elif name is None and table in TABLES and (match := OPENING.fullmatch(line)):
            name = match[1]


def lists(lines: list[str]) -> Lists:
    found: Lists = {}
    for place, line in placed(lines):
        if place:
            found.setdefault(place, []).append(line)
    return found


def name_of(line: str) -> str | None:
    """Return the name of the package that a line requires, if it does."""
    match = ENTRY.fullmatch(line)
    try:
        return canonicalize_name(Requirement(match["what"]).name) if match else None
    except InvalidRequirement:
        return None


def with_comma(line: str) -> str:
    """Return a line with a comma, which the last entry of a list may lack."""
    return ENTRY.sub(r"\1,\4", line)


def read(project: Path) -> list[str]:
    """Return the lines as they are, whatever ends them."""
    file = project / MANIFEST
    return (
        file.read_bytes().decode("utf-8", "surrogateescape").split("\n") if file.is_file() else []
    )


def write(project: Path, lines: list[str]) -> None:
    (project / MANIFEST).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
