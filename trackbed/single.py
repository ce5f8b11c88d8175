"""Commands for one service. Each imports only the modules that it needs."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from packaging.version import Version

from trackbed.addresses import shown
from trackbed.errors import FleetError, printable
from trackbed.project import Origin, Project, find_project, opened
from trackbed.releases import as_version

if TYPE_CHECKING:
    from trackbed.merge import Merged

NOTES = "docs/upgrading.md"
"""Page in which a template tells what each release means for its services."""

SHOWN = 8
"""Maximum number of words of a lost edit that are printed."""

Place = Annotated[
    Path | None, typer.Argument(metavar="PATH", help="the service; by default this directory")
]
Directory = Annotated[
    Path | None, typer.Option("-C", "--directory", metavar="PATH", help="the same, as git has it")
]
AnswersFile = Annotated[
    str | None,
    typer.Option(
        "-a", "--answers-file", metavar="NAME", help="where several templates have left theirs"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def status(
    path: Place = None,
    directory: Directory = None,
    answers_file: AnswersFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the version, the newest version, and the template's files that were changed here.

    Exit codes: 0 in step, 1 behind or files differ, 2 it cannot be told.
    """
    project = find_project(path or directory or Path.cwd(), answers_file)
    with opened(project) as (origin, scratch):
        version, newest = origin.recorded.version or project.recorded, origin.newest
        _, drift = find_drift(project, origin, scratch)
    behind = newest != version
    if as_json:
        document = {
            "source": shown(project.source),
            "version": project.recorded,
            "newest": newest,
            "update_available": behind,
            "drift": [{"path": path, "kind": kind} for path, kind in drift],
        }
        print(json.dumps(document, indent=2))
    else:
        print(printable(f"template  {shown(project.source)}"))
        print(f"version   {project.recorded}, {f'{newest} is out' if behind else 'the newest'}")
        print(f"drift     {len(drift)} of the template's files are not as it renders them")
        for path, kind in drift:
            print(printable(f"          {kind} {path}"))
    raise typer.Exit(behind or bool(drift))


def diff(path: Place = None, directory: Directory = None, answers_file: AnswersFile = None) -> None:
    """Show the changes in the template's files as a patch.

    Exit codes: 0 nothing, 1 something, 2 it cannot be told.
    """
    from trackbed.drift import patch

    project = find_project(path or directory or Path.cwd(), answers_file)
    with opened(project) as (origin, scratch):
        rendered, drift = find_drift(project, origin, scratch)
        paths = [path for path, _ in drift]
        inside = project.directory.relative_to(project.top)
        text = patch(rendered, project.top, inside, paths, scratch / "patch")
    print(text, end="")
    raise typer.Exit(bool(text))


def notes(
    path: Place = None, directory: Directory = None, answers_file: AnswersFile = None
) -> None:
    """Show what the template's newer releases mean for this service, the newest first."""
    project = find_project(path or directory or Path.cwd(), answers_file)
    with opened(project) as (origin, _):
        page = origin.step(None).new / NOTES
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        print("\n".join(sections(text, after=origin.version, until=origin.newest)), end="")


def update(
    path: Place = None,
    data: Annotated[
        list[str] | None,
        typer.Option("-d", "--data", metavar="NAME=VALUE", help="another answer to a question"),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="RELEASE",
            help="by default the newest; :current: stays, for other answers",
        ),
    ] = None,
    no_lock: Annotated[bool, typer.Option("--no-lock", help="leave uv.lock as it is")] = False,
    directory: Directory = None,
    answers_file: AnswersFile = None,
    as_json: AsJson = False,
) -> None:
    """Update this service, and tell conflicts and edits that are gone. Commits nothing.

    Exit codes: 0 clean, or nothing to do. 1 somebody has to look at conflicts, at lost edits, or at
    a lock that could not be renewed. 2 not done, 130 interrupted, and the service is as before.
    """
    from trackbed.carry import carry, require_committed
    from trackbed.merge import Trial

    project = find_project(path or directory or Path.cwd(), answers_file)
    given = read_data(data or [])
    require_committed(project)
    with opened(project) as (origin, scratch):
        step = origin.step(to)
        trial = Trial(project, origin, step, given, scratch)
        merged = trial.run(lock=not no_lock)
        if merged.changed:
            carry(trial)
    if as_json:
        print(json.dumps(asdict(merged), indent=2))
    else:
        print("\n".join(map(printable, told(merged))))
    raise typer.Exit(not merged.clean)


def told(merged: "Merged") -> list[str]:
    """Return the lines that tell a person about the update."""
    if not merged.changed:
        return [f"{merged.version} is what {merged.target} renders: nothing to do."]
    count = len(merged.changed)
    lines = [
        f"Updated from {merged.version} to {merged.target}: {count} files changed, none committed."
    ]
    lines += [f"conflict     {name}" for name in merged.conflicts]
    for loss in merged.lost:
        words = [token for token in loss.tokens if re.match(r"\w", token)] or loss.tokens
        more = " ..." if len(words) > SHOWN else ""
        lines.append(f"lost         {loss.path}: {' '.join(words[:SHOWN])}{more}")
    lines += [f"moved        {line}: bring it what is new by hand" for line in merged.moved]
    lines += [f"left out     {name}: its directory is deleted here" for name in merged.left_out]
    lines += [f"still gone   {name}: deleted here" for name in merged.absent]
    if merged.lock:
        lines.append(f"uv.lock      {merged.lock}")
    if merged.conflicts:
        lines.append("Settle the conflicts: git diff shows them.")
    if merged.lost:
        lines.append("What is lost is in the last commit: git show HEAD:./PATH, from the service.")
    lines.append("Then uv sync && uv run pytest, a look at git diff, and commit.")
    return lines


def find_drift(
    project: Project, origin: Origin, scratch: Path
) -> tuple[Path, list[tuple[str, str]]]:
    """Return the rendered recorded version, and the template's files that differ, and how."""
    from trackbed import render
    from trackbed.attempt import file_name
    from trackbed.drift import compare
    from trackbed.internals import PREFIX
    from trackbed.model import Drift

    step = origin.step(":current:")
    newest = origin.step(None)
    rendered = scratch / PREFIX / file_name(project.directory.name)
    try:
        with render.prepared(step.old, step.old, "", scratch):
            render.copy(project.answers, rendered, trust=False, answers_file=project.answers_file)
    except render.TrustNeeded as error:
        raise FleetError(f"the template needs trust, which is never given: {error}") from None
    found = Drift(name=project.directory.name, where="")
    inside = project.directory.relative_to(project.top)
    compare(rendered, project.top, inside, origin.ownership(newest), found)
    changed = [(name, "changed") for name in found.changed]
    return rendered, sorted([*changed, *((name, "missing") for name in found.missing)])


def read_data(given: list[str]) -> dict[str, str]:
    """Return the values by name. Raises FleetError for one that is not of the form NAME=VALUE."""
    for text in given:
        if not text.partition("=")[1] or not text.partition("=")[0].isidentifier():
            raise FleetError(f"-d {text}: write it as NAME=VALUE")
    return {text.partition("=")[0]: text.partition("=")[2] for text in given}


def sections(text: str, *, after: str, until: str) -> list[str]:
    """Return the sections of a page whose headings are versions in a range."""
    low, high = as_version(after) or Version("0"), as_version(until) or Version("0")
    found = []
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        heading = re.match(r"## (\S+)", part)
        version = as_version(heading[1]) if heading else None
        if version is not None and low < version <= high:
            found.append(part.strip() + "\n")
    return found
