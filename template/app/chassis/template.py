# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Start of `trackbed`, the template's command for its projects.

`python -m app template` runs it by `uvx`, from the template's newest release. This module needs
nothing but Python's standard library, because it has to work before the dependencies are installed.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from app.chassis.errors import StartupError

ROOT: Final = Path(__file__).resolve().parents[2]

LINE: Final = r"^%s: (.+(?:\n  .+)*)$"
"""Pattern for a text of the answers file, which YAML may break if it is long."""

SHORT: Final = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}

RELEASE: Final = re.compile(r"refs/tags/(v?(\d+(?:\.\d+)*))")

HASH: Final = re.compile(r"[0-9a-f]{7,64}")


class TemplateError(StartupError):
    """Error that says why the template's command cannot be found."""

    exit_code = 2


class Recorded(NamedTuple):
    """Name of the template's answers file, with the version and the source in it."""

    file: str
    version: str
    source: str


def hand_over(arguments: Sequence[str]) -> NoReturn:
    """Replace this process with the template's command for this project.

    Raises:
        TemplateError: There is no `uvx`, no version recorded, or no release to take it from.
    """
    known = recorded()
    address = git_address(known.source)
    uvx = find_uvx()
    package = f"git+{package_address(address)}@{newest_release(address, known.version)}"
    options = ["--quiet", "--python", sys.executable, "--from", package]
    place = ["-C", str(ROOT), *arguments, "-a", known.file]
    os.execv(uvx[0], [*uvx, *options, "trackbed", *place])


def find_uvx() -> list[str]:
    """Return the command that runs a package. `uv run` sets UV to the place of uv."""
    if uvx := shutil.which("uvx"):
        return [uvx]
    if uv := os.environ.get("UV") or shutil.which("uv"):
        return [uv, "tool", "run"]
    raise TemplateError(
        "Template: uvx is missing, which runs its command; install uv (https://docs.astral.sh/uv/)."
    )


def recorded() -> Recorded:
    """Return the answers file's name, and the version and the source from it.

    Raises:
        TemplateError: It is missing, is not the only one, or lacks one of both.
    """
    files = sorted(ROOT.glob(".copier-answers*.y*ml"))
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    # Another template may have left its answers as well, but this one asks for the volume
    ours = [name for name, text in texts.items() if re.search("^volume_path: ", text, re.M)]
    if len(ours) != 1:
        told = f"keep one of {', '.join(ours)}" if ours else ".copier-answers.yml is missing"
        raise TemplateError(f"Template: {told}; take it from the repository's history.")
    text = texts[ours[0]]
    version, source = (re.search(LINE % key, text, re.M) for key in ("_commit", "_src_path"))
    if version is None or source is None:
        raise TemplateError(
            f"Template: {ours[0]} has no version of the template. The project was copied from one "
            "without releases; copy it again over this one from a release."
        )
    return Recorded(ours[0], scalar(version[1]), scalar(source[1]))


def scalar(text: str) -> str:
    """Return a string that YAML has written, perhaps over several lines."""
    text = text.replace("\n  ", " ")
    if text.startswith("'") and text.endswith("'"):
        return text[1:-1].replace("''", "'")
    return text


def git_address(source: str) -> str:
    """Return the address that git takes for one of Copier's sources.

    Raises:
        TemplateError: It is a relative path that leads to no template from here.
    """
    for short, host in SHORT.items():
        if source.startswith(short):
            name = source.removeprefix(short).lstrip("/").removesuffix(".git")
            return f"{host}{name}.git"
    source = source.removeprefix("git+")
    if "://" in source or re.match(r"[\w.-]+@[\w.-]+:", source):
        return source
    path = (ROOT / Path(source).expanduser()).resolve()
    if not Path(source).expanduser().is_absolute() and not (path / "copier.yml").is_file():
        raise TemplateError(
            f"Template: {source} led to the template only from where this was copied; write its "
            "address into _src_path of .copier-answers.yml, and commit that."
        )
    return str(path)


def package_address(address: str) -> str:
    """Return an address with a scheme, as uv takes it."""
    if "://" in address:
        return address
    if address.startswith("/"):
        return Path(address).as_uri()
    return f"ssh://{address.replace(':', '/', 1)}"


def newest_release(address: str, version: str) -> str:
    """Return the tag of the newest release, which is not older than the recorded version.

    Raises:
        TemplateError: The template cannot be asked, or has none.
    """
    shown = re.sub(r"//[^/@]*@", "//", address)
    try:
        done = subprocess.run(
            ["git", "ls-remote", "--tags", "--refs", "--", address],  # noqa: S607
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "no answer in 120 s"
        raise TemplateError(f"Template: git cannot ask {shown}: {reason}.") from None
    if done.returncode:
        told = re.search(r"^(?:fatal|error): (.+)", done.stderr, re.M | re.I)
        reason = (told[1] if told else "git failed").replace(address, shown)
        raise TemplateError(
            f"Template: {shown} cannot be read: {reason}; if the template is somewhere else, "
            "write its address into _src_path of .copier-answers.yml, and commit that."
        )
    found = [RELEASE.fullmatch(line.partition("\t")[2]) for line in done.stdout.splitlines()]
    tags = {number(match[2]): match[1] for match in found if match}
    # A commit that is no release is recorded by its hash, whose first digits are no version
    known = () if HASH.fullmatch(version) else number(version)
    if not tags or max(tags) < known:
        raise TemplateError(
            f"Template: {shown} has no release that is {version} or newer; fetch its tags there."
        )
    return tags[max(tags)]


def number(version: str) -> tuple[int, ...]:
    """Return a version as numbers to compare, or nothing if it is no version."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, match[1].split("."))) if match else ()
