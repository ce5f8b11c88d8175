"""Service that a command is for, with its answers, its template and the template's releases."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.version import Version

from trackbed.addresses import expanded, is_url, normalized, shown
from trackbed.errors import FleetError, ServiceError
from trackbed.model import Release, Service
from trackbed.releases import Recorded, final, recognize, tagged_releases
from trackbed.services import read_answers, top
from trackbed.templates import (
    Commits,
    Ownership,
    Step,
    Template,
    is_template,
    read_ownership,
)

ANSWERS_FILES = ".copier-answers*.y*ml"

CURRENT = ":current:"
"""Name that Copier gives to the recorded commit."""

TELLING = {"backup", "builder", "project_name", "volume_path"}
"""Questions of every release of this template, which tell its answers from another template's."""


@dataclass(frozen=True)
class Project:
    """Service on this machine.

    Attributes:
        directory: the service, and `top` the repository that it is in.
        answers_file: its name within the service.
        answers: what it holds.
    """

    directory: Path
    top: Path
    answers_file: str
    answers: dict[str, Any]

    @property
    def source(self) -> str:
        return str(self.answers["_src_path"])

    @property
    def recorded(self) -> str:
        return str(self.answers["_commit"])


def find_project(directory: Path, answers_file: str | None) -> Project:
    """Find the service in a directory.

    Raises:
        FleetError: there is none, or it does not say what it was made from.
    """
    directory = directory.expanduser().resolve()
    if not directory.is_dir():
        raise FleetError(f"{directory}: no such directory")
    try:
        repository = top(directory)
    except ServiceError:
        raise FleetError(f"{directory} is not in a git repository: commit the service") from None
    if answers_file is not None and Path(answers_file).name != answers_file:
        raise FleetError(f"{answers_file}: the answers file is a name in {directory}")
    found = [answers_file] if answers_file else answers_files(directory)
    if not found:
        raise FleetError(f"{directory} has no .copier-answers.yml: use -C to name the service")
    read = {name: answers_of(directory, name, several=len(found) > 1) for name in found}
    ours = [name for name, answers in read.items() if answers.keys() >= TELLING] or found
    if len(read) > 1 and len(ours) != 1:
        raise FleetError(f"there are several answers files, choose with -a: {', '.join(ours)}")
    project = Project(directory, repository, ours[0], read[ours[0]])
    for key in ("_src_path", "_commit"):
        if not project.answers.get(key):
            raise FleetError(
                f"{project.answers_file} has no {key}: the service was copied from a template "
                "without releases; copy it again over this one, from a release"
            )
    return project


def answers_files(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.glob(ANSWERS_FILES) if file.is_file())


def answers_of(directory: Path, name: str, *, several: bool) -> dict[str, Any]:
    """Read an answers file. If there are several, one may be another template's and mistaken."""
    try:
        return read_answers(Service(directory.name, str(directory)), directory, name)
    except ServiceError as error:
        if several:
            return {}
        raise FleetError(str(error)) from None


class Origin:
    """Template that a project was made from, and its releases."""

    def __init__(self, project: Project, scratch: Path) -> None:
        """Look the template up.

        Raises:
            FleetError: it cannot be read.
        """
        self.project = project
        address = expanded(project.source)
        if not is_url(address) or address.startswith("file://"):
            address = normalized(address, project.directory)
            self.require_template(Path(address))
        names = frozenset([project.source, address, normalized(address)])
        self.commits = Commits(scratch, Template(address, names))
        self.mirror = self.commits.mirror(project.source, project.directory)
        if not final(self.releases):
            raise FleetError(
                f"the template has no release: no tag such as 1.2.3 in {shown(project.source)}; "
                "fetch its tags there, or give it one"
            )

    def require_template(self, directory: Path) -> None:
        """Refuse a path that leads to no template. A relative one may lead there from elsewhere."""
        if is_template(directory) or (directory / "HEAD").is_file():
            return
        source, path = self.project.source, Path(self.project.source.removeprefix("file://"))
        gone = path.is_absolute() or source.startswith("~")
        raise FleetError(
            f"the template is {'gone: ' if gone else ''}{source}"
            f"{'' if gone else ', which led to it only from where the service was copied'}; "
            f"write its address into _src_path of {self.project.answers_file}, and commit that"
        )

    @cached_property
    def releases(self) -> list[Release]:
        return tagged_releases(self.mirror)

    @property
    def recorded(self) -> Recorded:
        return recognize(self.project.recorded, self.releases)

    @property
    def version(self) -> str:
        return self.recorded.version or self.project.recorded

    @property
    def newest(self) -> str:
        """Return the newest release, or the recorded version if nothing is newer."""
        released = final(self.releases)
        version = self.recorded.version
        if not released or (version and Version(released[-1].version) <= Version(version)):
            return self.version
        return released[-1].version

    def step(self, to: str | None) -> Step:
        """Check out the recorded commit and another one, by default the newest release.

        Raises:
            FleetError: one is not there.
        """
        project = self.project
        if to == CURRENT:
            to = project.recorded
        self.commits.release_only = to not in (None, project.recorded)
        try:
            return self.commits.step(
                project.source, project.directory, project.recorded, to or self.newest
            )
        except ServiceError as error:
            raise FleetError(f"{error}{self.way_out(str(error))}") from None

    def way_out(self, problem: str) -> str:
        """Return the help for a recorded commit that the template does not have."""
        if not problem.startswith(f"the template has no commit {self.project.recorded}"):
            return ""
        release = self.recorded.version or self.newest
        return (
            f"; write the release that is nearest, such as {release}, into _commit of "
            f"{self.project.answers_file}, and commit that"
        )

    def ownership(self, step: Step) -> Ownership:
        """Read the template's paths from the newer commit, or else from the recorded one."""
        for commit in (step.new, step.old):
            if (commit / "ownership.toml").is_file():
                return read_ownership(commit / "ownership.toml")
        return Ownership(())


@contextmanager
def opened(project: Project) -> Iterator[tuple[Origin, Path]]:
    """Open the project's template, with a scratch directory.

    Raises:
        FleetError: the template cannot be read.
    """
    with TemporaryDirectory(prefix="trackbed-", ignore_cleanup_errors=True) as name:
        scratch = Path(name).resolve()
        try:
            yield Origin(project, scratch), scratch
        except ServiceError as error:
            raise FleetError(str(error)) from None


def names(paths: Sequence[str], limit: int = 5) -> str:
    """Return some paths for a message of one line."""
    more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(paths[:limit]) + more
