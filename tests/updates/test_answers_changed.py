"""Another answer on update: what a new project with that answer has, and the person's edits."""

import pytest

from cases import Fresh, Make, assert_survive, possible
from edits import EVERYTHING, Edit
from history import NEXT, VERSIONS, RunCopier, contents, data_options, expected, trust, update
from support import Answers, commit, git, mostly_long, recorded
from test_trackbed import trackbed

DEFAULTS: Answers = {
    "project_description": "Sends invoices.",
    "database": "sqlite",
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
    {"database": "postgresql", "replicas": 3, "workers": 2},
    {"python_version": "3.12", "volume_path": "/mnt/vol-1", "workers": 4, "backup": "volume"},
]


def lasting(answers: Answers) -> list[Edit]:
    """Return the edits that a project with these answers may have as well."""
    edits = possible(EVERYTHING, NEXT, answers)
    # the number of containers, beside which it stands, becomes another one
    is_moved = answers["database"] == "postgresql"
    return [edit for edit in edits if not (is_moved and edit.name == "region_added")]


AFTER: Answers = {"database": "postgresql", "backup": "railway"}


@pytest.mark.long
@pytest.mark.parametrize("changed", CHANGES, ids=ascii)
def test_there_and_back(changed: Answers, make: Make, fresh: Fresh, run_copier: RunCopier) -> None:
    project = make(NEXT, DEFAULTS)
    there = {**DEFAULTS, **changed}
    also = lasting(there)
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


@pytest.mark.parametrize("backup", ["volume", "litestream"])
@pytest.mark.parametrize("release", mostly_long(VERSIONS[::-1]))
def test_to_postgresql_from_every_release(
    release: str, backup: str, make: Make, fresh: Fresh
) -> None:
    """One answer is enough: a backup that is SQLite's becomes the default."""
    before: Answers = {"project_description": "Sends invoices.", "volume_path": "/mnt/vol-1"}
    # the copies on the volume are younger than some releases
    if backup == "litestream":
        before["backup"] = backup
    project = make(release, before)
    rendered = contents(project)

    done = trackbed(project, "update", "--no-lock", "-d", "database=postgresql")

    assert done.returncode == 0, done.stdout + done.stderr
    written = recorded(project)
    assert (written["backup"], written["volume_path"]) == (AFTER["backup"], "/mnt/vol-1")
    assert contents(project) == expected(rendered, contents(fresh({**before, **AFTER})))


@pytest.mark.long
@pytest.mark.parametrize("release", VERSIONS)
def test_edits_survive_the_way_to_postgresql(
    release: str, make: Make, fresh: Fresh, run_copier: RunCopier
) -> None:
    before = {
        name: value for name, value in DEFAULTS.items() if name not in {"database", "features"}
    }
    after: Answers = {**before, "features": [], "database": "postgresql"}
    also = lasting(after)
    edits = [edit for edit in possible(EVERYTHING, release, before) if edit in also]
    options = ["--data=database=postgresql", *trust(release)]
    assert_survive(edits, make(release, before), fresh(after), run_copier, *options)
