"""Update of one service, in a clone first, and then in its directory, or not at all."""

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from trackbed import bounded, dependencies, personal, render
from trackbed.attempt import Job, file_name, has_markers, lost_words, statuses
from trackbed.errors import FleetError, ServiceError, one_line
from trackbed.git import borrow, git, tip
from trackbed.internals import PREFIX
from trackbed.model import Loss, Service
from trackbed.project import Origin, Project, names
from trackbed.templates import Step

LOCK = "uv.lock"
MANIFEST = "pyproject.toml"
LOCK_SECONDS = 900
FAR = "30%"
"""Part of a file that has to be the same, so that the file counts as moved."""


@dataclass(kw_only=True)
class Merged:
    """Update, as it is or will be in the service.

    Attributes:
        version: the version before the update, and `target`, the version after it.
        changed: the files that it writes or deletes.
        conflicts: those that somebody has to settle.
        lost: words that somebody had written and that are gone.
        absent: files of the template's that are deleted in the service, and stay so.
        left_out: new files whose directory is deleted in the service.
        moved: shared files that are somewhere else in the service, where no update finds them.
        lock: why uv.lock is not what pyproject.toml asks for, if it is not.
    """

    version: str
    target: str
    changed: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    lock: str | None = None

    @property
    def clean(self) -> bool:
        return not (self.conflicts or self.lost or self.lock)


class Trial:
    """Trial of an update of a service's last commit, in a clone of its repository."""

    def __init__(
        self, project: Project, origin: Origin, step: Step, data: Mapping[str, str], scratch: Path
    ) -> None:
        self.project = project
        self.head = tip(project.top)
        self.job = Job(
            service=Service(project.directory.name, str(project.directory)),
            directory=project.directory,
            top=project.top,
            answers=project.answers,
            version=origin.version,
            step=step,
            trust=False,
            workspace=scratch,
            commit=self.head,
            answers_file=project.answers_file,
        )
        self.data = data
        self.scratch = scratch
        self.ownership = origin.ownership(step)
        # The clone has the same name, because a template may name things after the directory
        self.repository = scratch / "clone" / file_name(project.top.name)
        self.directory = self.repository / self.job.inside
        self.original = scratch / PREFIX / file_name(project.directory.name)
        self.merged = Merged(version=origin.version, target=step.name)

    def run(self, *, lock: bool) -> Merged:
        """Update the clone, and return what has become of the service's own edits.

        Raises:
            FleetError: it cannot be done, for the reason in the message.
        """
        self.clone()
        with self.copier():
            render.copy(
                self.project.answers,
                self.original,
                trust=False,
                answers_file=self.project.answers_file,
            )
        self.refuse_links()
        self.look_for_moves()
        self.update()
        if MANIFEST in self.conflicts():
            self.update_without_dependencies()
        self.leave_out()
        merged = self.merged
        merged.conflicts = self.conflicts()
        merged.changed = [name for _, name in statuses(self.directory)]
        merged.lost = lost_words(self.job, self.directory, self.original, merged.changed)
        if lock and MANIFEST in merged.changed and (where := self.lock_file()):
            merged.lock = self.renew_lock(where)
            merged.changed = [name for _, name in statuses(self.directory)]
        return merged

    def clone(self) -> None:
        """Make the clone. Links are plain files in it, so that nothing is written through them."""
        borrow(self.project.top, self.repository, self.head)
        git(self.repository, "config", "core.symlinks", "false")
        git(self.repository, "reset", "--quiet", "--hard")
        if not (self.directory / self.project.answers_file).is_file():
            raise FleetError(f"the last commit has no {self.project.answers_file}: commit it")

    def copier(self) -> AbstractContextManager[None]:
        step = self.job.step
        return render.prepared(step.old, step.new, step.target, self.scratch)

    def update(self) -> None:
        try:
            with self.copier():
                render.update(
                    self.directory,
                    self.job.step.target,
                    trust=False,
                    data=self.data,
                    answers_file=self.project.answers_file,
                )
        except render.TrustNeeded as error:
            raise FleetError(f"the template needs trust, which is never given: {error}") from None
        except ServiceError as error:
            # This is the one way in which a template ends Copier with a message of its own
            if message := re.search(r"has no attribute '(\w+: .+)'$", str(error)):
                raise FleetError(message[1]) from None
            raise

    def update_without_dependencies(self) -> None:
        """Update again without the service's own dependencies, and put them below the others.

        Older releases list dependencies by name, between lines that newer ones change. If this
        conflicts as well, the first update stands.
        """
        first = self.scratch / "first"
        self.repository.rename(first)
        self.clone()
        if own := dependencies.set_aside(self.directory, self.original):
            record(self.repository, "The template's dependencies only")
            self.update()
            git(self.repository, "update-ref", "HEAD", self.head)
        settled = MANIFEST not in self.conflicts()
        if not (own and settled and dependencies.put_back(self.directory, own)):
            shutil.rmtree(self.repository)
            first.rename(self.repository)

    def conflicts(self) -> list[str]:
        return [
            name
            for state, name in statuses(self.directory)
            if "U" in state
            or state in ("AA", "DD")
            or name.endswith(".rej")
            or has_markers(self.directory / name)
        ]

    def refuse_links(self) -> None:
        """Refuse a service that has a link or another kind of file where the template has files."""
        linked = {
            name
            for mode, name in listed(self.directory)
            if mode in ("120000", "160000") and (self.original / name).exists()
        }
        if linked:
            raise FleetError(
                f"no link may be where the template has files: {names(sorted(linked))}"
            )
        for path in sorted(self.original.rglob("*")):
            name = path.relative_to(self.original)
            there = self.directory / name
            if there.exists() and there.is_dir() != path.is_dir():
                here, theirs = ("directory", "file") if there.is_dir() else ("file", "directory")
                raise FleetError(f"no {here} may be where the template has a {theirs}: {name}")

    def look_for_moves(self) -> None:
        """Note the files of the recorded version that are gone or somewhere else in the service.

        Raises:
            FleetError: a whole directory of the template's is somewhere else.
        """
        rendered = tree_of(self.original, self.repository, self.scratch)
        inside = self.job.inside
        where = f"{self.head}:{inside.as_posix()}" if inside.parts else self.head
        options = ["-r", "-z", f"-M{FAR}", "--diff-filter=DR", "-l0"]
        entries = iter(git(self.repository, "diff-tree", *options, rendered, where).split("\0"))
        gone: dict[str, str] = {}
        for entry in entries:
            if entry.endswith("D"):
                gone[next(entries)] = ""
            elif entry:
                old = next(entries)
                gone[old] = next(entries)
        owned = [name for name in files(self.original) if self.ownership.owns(name)]
        for path in self.ownership.paths:
            inside = [name for name in owned if name.startswith(path) and path.endswith("/")]
            moved = [name for name in inside if gone.get(name)]
            if inside and gone.keys() >= set(inside) and len(moved) * 2 > len(inside):
                raise FleetError(
                    f"{path} has moved, {moved[0]} to {gone[moved[0]]}: an update finds it only "
                    "where it was; move it back"
                )
        self.merged.absent = [name for name in owned if name in gone]
        self.merged.moved = [
            f"{old} is now {new}" for old, new in gone.items() if new and old not in owned
        ]

    def leave_out(self) -> None:
        """Delete new files below directories that were deleted, because half of one cannot work."""
        before = {str(Path(name).parent) for name in files(self.original)}
        kept = {name for _, name in listed(self.directory)}
        alive = {str(parent) for name in kept for parent in Path(name).parents}
        for _, name in statuses(self.directory):
            parents = {str(parent) for parent in Path(name).parents}
            if name not in kept and parents & (before - alive):
                (self.directory / name).unlink(missing_ok=True)
                self.merged.left_out.append(name)

    def lock_file(self) -> Path | None:
        """Return the path of uv.lock, which is above the service in a workspace of uv."""
        for directory in (self.directory, *self.directory.parents):
            if (directory / LOCK).is_file():
                return directory / LOCK
            if directory == self.repository:
                break
        return None

    def renew_lock(self, file: Path) -> str | None:
        """Renew uv.lock in the clone. Return the reason if that could not be done."""
        manifest = self.directory / MANIFEST
        if not manifest.is_file():
            return None
        if MANIFEST in self.merged.conflicts:
            return f"{MANIFEST} has to be settled first; then run uv lock"
        uv = os.environ.get("UV") or shutil.which("uv")
        if uv is None:
            return "uv is not installed; run uv lock"
        env = {name: value for name, value in personal.environment.items() if name != "VIRTUAL_ENV"}
        before = file.read_bytes()
        try:
            done = bounded.run(
                [uv, "lock", "--quiet", "--no-progress"],
                cwd=self.directory,
                env=env,
                seconds=LOCK_SECONDS,
                output=bounded.MEGABYTE,
            )
        except (OSError, bounded.Exceeded) as error:
            return f"uv lock failed: {error}; run it"
        # A service that is no member of the workspace gets its own lock, which is removed here
        if file.parent != self.directory:
            (self.directory / LOCK).unlink(missing_ok=True)
        if done.code:
            file.write_bytes(before)
            return f"uv lock failed: {one_line(done.err.decode('utf-8', 'replace'))}"
        return None


def listed(directory: Path) -> list[tuple[str, str]]:
    """Return the mode and name of each entry of the last commit below a directory."""
    entries = git(directory, "ls-tree", "-r", "-z", "HEAD").split("\0")
    return [(entry[:6], entry.partition("\t")[2]) for entry in entries if entry]


def files(directory: Path) -> list[str]:
    found = (path for path in directory.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(path.relative_to(directory).as_posix() for path in found)


def tree_of(directory: Path, repository: Path, scratch: Path) -> str:
    """Write a directory's files as a tree of another repository, and return the tree's hash."""
    env = {
        "GIT_DIR": str(repository / ".git"),
        "GIT_WORK_TREE": str(directory),
        "GIT_INDEX_FILE": str(scratch / "tree-index"),
    }
    git(directory, "add", "--all", "--force", ".", env=env)
    return git(directory, "write-tree", env=env).strip()


def record(repository: Path, message: str) -> str:
    """Commit all files of a clone, and return the commit."""
    who = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", "trackbed"), ("EMAIL", "trackbed@localhost"))
    }
    # The clone had no ignored files, so all ignored files in it came with the update
    git(repository, "add", "--all", "--force", ".")
    git(repository, "commit", "--quiet", "--no-verify", "--message", message, env=who)
    return git(repository, "rev-parse", "HEAD").strip()
