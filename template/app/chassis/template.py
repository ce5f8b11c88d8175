# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""`python -m app template`: how this project stands to the template it was made from.

Copier is run by `uvx`, so that the service does not depend on it. Needs nothing but Python's
standard library itself: it has to work before the dependencies are installed.
"""

import difflib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypedDict

from app.chassis.errors import StartupError

ROOT: Final = Path(__file__).resolve().parents[2]

COPIER: Final = "copier>=9.19,<10"

ANSWERS: Final = ".copier-answers.yml"

OWNED: Final = "Belongs to the template: "
"""How the header of each file begins that an update replaces."""

HEADER_LINES: Final = 3

NOTES: Final = "docs/upgrading.md"
"""Where the template tells what each version means for its projects."""

VERSION_FORM: Final = re.compile(r"v?(\d+(?:\.\d+)*)")


class TemplateError(StartupError):
    """It cannot be told; the message says why."""

    exit_code = 2


class Recorded(NamedTuple):
    """What the answers file has of the template."""

    version: str
    source: str


class Drift(NamedTuple):
    """A file of the template's that is not as its version renders it."""

    path: str
    kind: Literal["changed", "missing"]


class Report(TypedDict):
    source: str
    version: str
    newest: str
    update_available: bool
    drift: list[dict[str, str]]


def status() -> Report:
    """The recorded version, the newest one, and every file of the template's that differs.

    Raises:
        TemplateError: The template cannot be reached, or nothing is recorded.
    """
    known = recorded()
    newest = newest_version(known)
    with rendered(known) as fresh:
        drift = [found._asdict() for found in find_drift(fresh)]
    return {
        "source": known.source,
        "version": known.version,
        "newest": newest,
        "update_available": newest != known.version,
        "drift": drift,
    }


def lines(report: Report) -> list[str]:
    """The report for a person, one line each."""
    newest = f"{report['newest']} is out" if report["update_available"] else "the newest"
    shown = [
        f"template  {report['source']}",
        f"version   {report['version']}, {newest}",
        f"drift     {len(report['drift'])} of the template's files are not as it renders them",
    ]
    return [*shown, *(f"          {found['kind']} {found['path']}" for found in report["drift"])]


def is_in_step(report: Report) -> bool:
    return not report["update_available"] and not report["drift"]


def diff() -> str:
    """What has been changed in the template's files, as a patch.

    Raises:
        TemplateError: The template cannot be reached, or nothing is recorded.
    """
    with rendered(recorded()) as fresh:
        return "".join(patch for found in find_drift(fresh) for patch in compare(fresh, found.path))


def notes() -> str:
    """What the template's newer versions mean for this project, the newest first.

    Raises:
        TemplateError: The template cannot be reached, or nothing is recorded.
    """
    known = recorded()
    newest = newest_version(known)
    with tempfile.TemporaryDirectory() as directory:
        clone = ["git", "clone", "--quiet", "--depth=1", f"--branch={newest}"]
        run([*clone, "--", git_address(known.source), directory])
        page = Path(directory, NOTES)
        text = page.read_text(encoding="utf-8") if page.exists() else ""
    return "\n".join(sections(text, after=known.version, until=newest))


def recorded() -> Recorded:
    """The version and the source, out of the answers file.

    Raises:
        TemplateError: It is missing, or says neither.
    """
    try:
        text = (ROOT / ANSWERS).read_text(encoding="utf-8")
    except OSError:
        raise TemplateError(
            f"Template: {ANSWERS} is missing; take it from the repository's history."
        ) from None
    found = dict(re.findall(r"^(_commit|_src_path): (.+)$", text, re.MULTILINE))
    if found.keys() != {"_commit", "_src_path"}:
        raise TemplateError(
            f"Template: {ANSWERS} has no version of the template. The project was copied from one "
            "without releases; copy it again over this one from a release."
        )
    return Recorded(scalar(found["_commit"]), scalar(found["_src_path"]))


def scalar(text: str) -> str:
    """A string as YAML writes it on one line."""
    if text.startswith("'") and text.endswith("'"):
        return text[1:-1].replace("''", "'")
    return text


def newest_version(known: Recorded) -> str:
    """The template's newest release; what is recorded, if nothing is newer."""
    found = json.loads(copier("check-update", "--output-format=json", ".", accepted=(0, 2)))
    newest: str = found["latest_version"]
    return newest if found["update_available"] else known.version


@contextmanager
def rendered(known: Recorded) -> Iterator[Path]:
    """A copy of the project as its version renders it with its answers, for a while."""
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory, "project")
        options = ["--quiet", "--defaults", f"--vcs-ref={known.version}", f"--data-file={ANSWERS}"]
        copier("copy", *options, known.source, str(fresh))
        yield fresh


def copier(*arguments: str, accepted: Sequence[int] = (0,)) -> str:
    """What a run of Copier prints.

    Raises:
        TemplateError: There is no `uvx`, or Copier fails.
    """
    if shutil.which("uvx") is None:
        raise TemplateError(
            "Template: uvx is missing, which runs Copier; install uv (https://docs.astral.sh/uv/)."
        )
    return run(["uvx", "--quiet", "--from", COPIER, "copier", *arguments], accepted)


def run(command: list[str], accepted: Sequence[int] = (0,)) -> str:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise TemplateError(
            f"Template: {command[0]} cannot be run: {error.strerror}; install it."
        ) from None
    if done.returncode not in accepted:
        told = [line for line in done.stderr.splitlines() if line.strip()]
        name = " ".join(command[4:6]) if command[0] == "uvx" else " ".join(command[:2])
        raise TemplateError(f"Template: {name} failed: {told[-1].strip() if told else 'silently'}")
    return done.stdout


def find_drift(fresh: Path) -> list[Drift]:
    """The template's files, as a fresh copy has them, that differ or are missing here."""
    found = []
    for file in sorted(fresh.rglob("*")):
        if not file.is_file() or not is_owned(file):
            continue
        path = file.relative_to(fresh).as_posix()
        here = ROOT / path
        if not here.is_file():
            found.append(Drift(path, "missing"))
        elif here.read_bytes().replace(b"\r\n", b"\n") != file.read_bytes():
            found.append(Drift(path, "changed"))
    return found


def is_owned(file: Path) -> bool:
    """Whether the file says of itself that it belongs to the template."""
    with file.open("rb") as opened:
        return any(OWNED.encode() in opened.readline(300) for _ in range(HEADER_LINES))


def compare(fresh: Path, path: str) -> Iterator[str]:
    here = ROOT / path
    new = here.read_text(encoding="utf-8", errors="replace") if here.is_file() else ""
    return difflib.unified_diff(
        (fresh / path).read_text(encoding="utf-8").splitlines(keepends=True),
        new.splitlines(keepends=True),
        f"template/{path}",
        f"project/{path}",
    )


def sections(text: str, *, after: str, until: str) -> list[str]:
    """The sections of a page whose headings are versions in a range."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return [
        part.strip() + "\n"
        for part in parts
        if (heading := re.match(r"## (\S+)", part))
        and number(after) < number(heading[1]) <= number(until)
    ]


def number(version: str) -> tuple[int, ...]:
    """A version to compare; nothing for what is none."""
    match = VERSION_FORM.match(version)
    return tuple(map(int, match[1].split("."))) if match else ()


def git_address(source: str) -> str:
    """Copier's short forms of a repository's address, written out."""
    for short, host in (("gh:", "https://github.com/"), ("gl:", "https://gitlab.com/")):
        if source.startswith(short):
            return f"{host}{source.removeprefix(short)}.git"
    return source.removeprefix("git+")
