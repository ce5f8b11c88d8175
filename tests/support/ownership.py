"""Who changes which path of a project, as ownership.toml says."""

from collections.abc import Mapping
from pathlib import Path

from support import ROOT, load_toml

OWNERSHIP = load_toml(ROOT / "ownership.toml")
EVER: list[dict[str, str | list[str]]] = OWNERSHIP["template"]
TEMPLATE = [part for part in EVER if "until" not in part]
SHARED: dict[str, str] = OWNERSHIP["shared"]
USER: list[str] = [*OWNERSHIP["user"]["kept"], *OWNERSHIP["user"]["examples"]]

# where new lines of the person's own go, by file
ANCHORS = {name: anchor.strip("\n") for name, anchor in SHARED.items() if anchor}

# Copier's own record
ANSWERS_FILE = ".copier-answers.yml"


def covers(path: str, name: str) -> bool:
    """Whether a path of ownership.toml, a file or a directory, is or holds a file."""
    return name.startswith(path) if path.endswith("/") else name == path


def owners(name: str) -> list[str]:
    """Each entry that names a file, with its class."""
    return [
        *(f"template: {path}" for part in EVER for path in part["paths"] if covers(path, name)),
        *(f"shared: {path}" for path in SHARED if path == name),
        *(f"user: {path}" for path in USER if path == name),
    ]


def is_theirs(name: str) -> bool:
    """Whether an update may not touch a file: one of the user's, or one the template never had."""
    return name != ANSWERS_FILE and all(owner.startswith("user") for owner in owners(name))


def below_anchor(project: Path, name: str, text: str, anchors: Mapping[str, str] = ANCHORS) -> None:
    """Add lines directly below a file's anchor."""
    path = project / name
    before, anchor, after = path.read_text(encoding="utf-8").partition(f"{anchors[name]}\n")
    assert anchor, f"{name} has no anchor"
    path.write_text(f"{before}{anchor}{text}{after}", encoding="utf-8")
