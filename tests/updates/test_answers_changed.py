"""Another answer on update: what a new project with that answer has, and the person's edits."""

import pytest

from cases import Fresh, Make, assert_survive, possible
from edits import EVERYTHING
from history import NEXT, RunCopier, data_options, update
from support import Answers, commit, git

DEFAULTS: Answers = {
    "backup": "railway",
    "builder": "dockerfile",
    "ci": "github",
    "features": [],
    "python_version": "3.13",
    "volume_path": "/data",
    "workers": 1,
}
CHANGES: list[Answers] = [
    {"backup": "litestream"},
    {"features": ["conversations", "oauth"], "ci": "none"},
    {"builder": "railpack", "backup": "none"},
    {"features": ["oauth"], "oauth_providers": ["google", "microsoft"]},
    {"features": ["conversations"], "ai_provider": "anthropic", "builder": "nixpacks"},
    {"python_version": "3.12", "volume_path": "/mnt/vol-1", "workers": 4, "backup": "volume"},
]


@pytest.mark.long
@pytest.mark.parametrize("changed", CHANGES, ids=ascii)
def test_there_and_back(changed: Answers, make: Make, fresh: Fresh, run_copier: RunCopier) -> None:
    project = make(NEXT, DEFAULTS)
    there = {**DEFAULTS, **changed}
    also = possible(EVERYTHING, NEXT, there)
    edits = [edit for edit in possible(EVERYTHING, NEXT, DEFAULTS) if edit in also]
    assert all(edit.keeps_its_place(project) for edit in edits)
    current = "--vcs-ref=:current:"
    found = assert_survive(
        edits, project, fresh(there), run_copier, current, *data_options(changed)
    )
    assert found == set()
    commit(project, "Other answers")

    back = {name: value for name, value in DEFAULTS.items() if name in changed}
    update(run_copier, project, current, *data_options(back))
    commit(project, "The first answers")
    assert git(project, "diff", "--name-only", "HEAD~2") == ""
