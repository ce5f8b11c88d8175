"""One case: somebody makes a project, edits it, and updates."""

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.version import Version

from edits import EDITS, Edit
from history import (
    Contents,
    RunCopier,
    conflicts,
    contents,
    expected,
    lines,
    removed,
    update,
    written,
)
from support import Answers, commit, git, parse_everything

Make = Callable[[str, Answers], Path]
Fresh = Callable[[Answers], Path]


def possible(edits: Iterable[str], release: str, answers: Answers) -> list[Edit]:
    """Those that can be made to a project of this release with these answers."""
    return [
        edit
        for edit in map(EDITS.__getitem__, edits)
        if edit.since <= Version(release) and edit.needs.items() <= answers.items()
    ]


def make_edits(edits: Iterable[Edit], project: Path) -> dict[str, set[str]]:
    """Make them one after the other; returns the files that each has changed."""
    touched = {}
    for edit in edits:
        before = contents(project)
        edit.change(project)
        after = contents(project)
        changed = {
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        }
        assert changed, f"{edit.name} changes nothing"
        touched[edit.name] = changed
    return touched


def assert_survive(
    edits: list[Edit], project: Path, fresh: Path, run_copier: RunCopier, *options: str
) -> set[str]:
    """Edit a project that is as it was rendered, update it, and compare it with what a new one
    with the same edits would be. Returns the files in conflict."""
    rendered = contents(project)
    sure = [edit for edit in edits if edit.keeps_its_place(project)]
    touched = make_edits(edits, project)
    before = contents(project)
    commit(project, "Work on the project")
    make_edits(edits, fresh)

    output = update(run_copier, project, *options)
    assert "Warning" not in output
    conflicting = conflicts(project)
    after = contents(project)

    assert_nothing_is_lost(rendered, before, after, conflicting)
    # files in which an edit has no promise: a conflict, or as it is
    unsure = {name for edit in edits if edit not in sure for name in touched[edit.name]}
    unordered = {name for edit in edits for name in edit.unordered}
    assert conflicting <= unsure, f"conflicts in {conflicting - unsure}"
    goal = expected(before, contents(fresh))
    assert after.keys() == goal.keys()
    for name in goal.keys() - unsure - unordered:
        assert after[name] == goal[name], name
    for name in unordered - unsure:
        assert lines(after[name]) == lines(goal[name]), name
    if conflicting:
        assert "leftover conflict marker" in check(project)
    else:
        parse_everything(project)
    return conflicting


def assert_nothing_is_lost(
    rendered: Contents, before: Contents, after: Contents, conflicting: set[str]
) -> None:
    """What was written is there, and what was taken out is not back, unless a conflict says so."""
    for name, added in written(rendered, before).items():
        assert not added - lines(after[name]), f"{name} has lost lines"
    for name, gone in removed(rendered, before).items():
        if name not in conflicting:
            back = lines(after[name]) - lines(before[name])
            assert not gone & back, f"{name} has lines that were taken out"


def check(project: Path) -> str:
    """What `git diff --check` says."""
    done = subprocess.run(
        ["git", "diff", "--check"], cwd=project, capture_output=True, encoding="utf-8"
    )
    return done.stdout


def assert_second_update_changes_nothing(run_copier: RunCopier, project: Path) -> None:
    commit(project, "Update")
    update(run_copier, project)
    assert git(project, "status", "--porcelain") == ""
