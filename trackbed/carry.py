"""Transfer of an update from the clone in which it was made to the service's directory."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trackbed import bounded
from trackbed.errors import FleetError, ServiceError
from trackbed.git import git
from trackbed.merge import LOCK, Trial, record
from trackbed.personal import git as own_git
from trackbed.project import Project, names


def require_committed(project: Project) -> None:
    """Refuse a service with uncommitted changes, which would mix with those of an update.

    Files that git does not follow may be there. `carry` refuses those that are in the way.

    Raises:
        FleetError: there are some.
    """
    options = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=no")
    listed = own_git(project.top, *options, "--", str(project.directory), f":(top){LOCK}")
    if changed := [entry[3:] for entry in listed.split("\0") if entry]:
        raise FleetError(f"commit or stash your changes first: {names(changed)}")


def carry(trial: Trial) -> None:
    """Write what the update has changed, as git checks files out there, and mark conflicts.

    Raises:
        FleetError: a file is in the way. Nothing is written then.
    """
    top, repository = trial.project.top, trial.repository
    require_committed(trial.project)
    if own_git(top, "rev-parse", "HEAD").strip() != trial.head:
        raise FleetError("somebody has committed meanwhile; run it again")
    unmerged = git(repository, "ls-files", "--unmerged", "-z")
    result = record(repository, "Update")
    options = ("-r", "-z", "--name-status", "--no-renames")
    fields = git(repository, "diff-tree", *options, trial.head, result).split("\0")
    changes = list(zip(fields[1::2], fields[0::2], strict=False))
    refuse_what_is_in_the_way(trial, changes, result)
    written = [name for name, state in changes if state != "D"]
    deleted = [name for name, state in changes if state == "D"]
    objects = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(repository / ".git" / "objects")}
    index = {"GIT_INDEX_FILE": str(trial.scratch / "index"), **objects}
    own_git(top, "read-tree", result, env=index)
    with undone_on_failure(trial, [name for name, _ in changes]):
        for name in deleted:
            delete(top, name)
        options = ("--force", "-z", "--stdin")
        own_git(top, "checkout-index", *options, stdin=terminated(written), env=index)
        mark(trial, unmerged)


def refuse_what_is_in_the_way(trial: Trial, changes: list[tuple[str, str]], result: str) -> None:
    """Refuse an update that would overwrite a file that git does not follow or does not show.

    Raises:
        FleetError: there is such a file.
    """
    top = trial.project.top
    modes = git(trial.repository, "ls-tree", "-r", "-z", trial.head).split("\0")
    links = {entry.partition("\t")[2] for entry in modes if entry.startswith(("120000", "160000"))}
    flagged = own_git(top, "ls-files", "-v", "-z").split("\0")
    hidden = {entry[2:] for entry in flagged if entry[:1].islower() or entry[:1] == "S"}
    blocked = []
    for name, state in changes:
        parents = [str(parent) for parent in Path(name).parents][:-1]
        if links & {name, *parents}:
            raise FleetError(f"no link may be where the template has files: {name}")
        if name in hidden:
            raise FleetError(f"git does not compare {name} (assume-unchanged, sparse checkout)")
        there = top / name
        beneath = any((top / part).is_symlink() or (top / part).is_file() for part in parents)
        if beneath or (state == "A" and os.path.lexists(there) and not same(trial, name, result)):
            blocked.append(name)
    if blocked:
        raise FleetError(f"in the way, and not in git: {names(blocked)}; commit or move them")


def same(trial: Trial, name: str, result: str) -> bool:
    file = trial.project.top / name
    return file.is_file() and file.read_bytes() == (trial.repository / name).read_bytes()


def delete(top: Path, name: str) -> None:
    """Delete a file, and the directories that are empty then."""
    (top / name).unlink(missing_ok=True)
    for parent in (top / name).parents:
        if parent == top or not parent.is_dir() or any(parent.iterdir()):
            break
        parent.rmdir()


def mark(trial: Trial, unmerged: str) -> None:
    """Enter conflicts into the index, as a merge does and Copier did in the clone."""
    lines = []
    for entry in unmerged.split("\0"):
        if not entry:
            continue
        about, _, name = entry.partition("\t")
        mode, blob, stage = about.split()
        content = git(trial.repository, "cat-file", "blob", blob)
        data = content.encode("utf-8", "surrogateescape")
        kept = own_git(trial.project.top, "hash-object", "-w", "--stdin", stdin=data).strip()
        if not any(line.endswith(f"\t{name}") for line in lines):
            lines.append(f"0 {'0' * len(blob)}\t{name}")
        lines.append(f"{mode} {kept} {stage}\t{name}")
    if lines:
        own_git(trial.project.top, "update-index", "-z", "--index-info", stdin=terminated(lines))


def terminated(lines: Sequence[str]) -> bytes:
    """Return lines as git reads them with -z."""
    return "".join(f"{line}\0" for line in lines).encode("utf-8", "surrogateescape")


@contextmanager
def undone_on_failure(trial: Trial, paths: list[str]) -> Iterator[None]:
    """Put files and the index back if what is done with them fails or is interrupted."""
    top = trial.project.top
    kept = trial.scratch / "kept"
    index = top / own_git(top, "rev-parse", "--git-path", "index").strip()
    before = {name for name in paths if os.path.lexists(top / name)}
    for name in before:
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(top / name, kept / name, follow_symlinks=False)
    shutil.copy2(index, trial.scratch / "kept-index")
    try:
        with bounded.signals_held():
            try:
                yield
                if bounded.waiting:
                    raise KeyboardInterrupt
            except BaseException:
                for name in paths:
                    delete(top, name)
                for name in before:
                    (top / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(kept / name, top / name, follow_symlinks=False)
                shutil.copy2(trial.scratch / "kept-index", index)
                raise
    except (OSError, ServiceError) as error:
        raise FleetError(f"nothing is updated: {error}") from None
