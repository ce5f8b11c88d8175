"""Updates from every release: alone, and with everything that people do at once."""

import re
import subprocess
from pathlib import Path

import pytest

from cases import (
    Fresh,
    Make,
    assert_second_update_changes_nothing,
    assert_survive,
    possible,
)
from edits import EVERYTHING
from history import (
    NEXT,
    OLDEST,
    RELEASES,
    VERSIONS,
    RunCopier,
    conflicts,
    contents,
    expected,
    next_version,
    tag_releases,
    trust,
    update,
)
from support import ROOT, Answers, git, lint, mostly_long, rendered_name, tool
from support.ownership import SHARED, is_theirs

PRODUCTION: Answers = {"backup": "litestream", "builder": "dockerfile", "ci": "github"}
SETS: list[Answers] = [
    PRODUCTION,
    {"backup": "railway", "builder": "railpack", "ci": "none", "volume_path": "/mnt/vol-1"},
    {"backup": "none", "builder": "nixpacks", "ci": "github", "workers": 4},
]


def identify_set(value: object) -> str:
    return f"{value['backup']}-{value['builder']}" if isinstance(value, dict) else str(value)


# each release with the sets in turn, so that all sets meet several releases
IN_TURN = [(release, SETS[turn % len(SETS)]) for turn, release in enumerate(VERSIONS)]
EACH_RELEASE = pytest.mark.parametrize(
    ("release", "answers"), mostly_long(IN_TURN), ids=identify_set
)
AT_THE_ENDS = [(release, answers) for release in (OLDEST, VERSIONS[-1]) for answers in SETS]
COVERING = pytest.mark.parametrize(
    ("release", "answers"),
    [*AT_THE_ENDS, *(case for case in IN_TURN if case not in AT_THE_ENDS)],
    ids=identify_set,
)

# where releases without an anchor may have a conflict
BEFORE_THE_ANCHORS = {".dockerignore"}


def test_the_next_version_is_newer() -> None:
    assert next_version(["0.1.0", "0.10.1", "0.9.0"]) == "0.11.0"


def test_a_clone_without_the_releases_says_so(tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--no-tags", "--depth", "1", f"file://{ROOT}", str(shallow))
    with pytest.raises(AssertionError, match=rf"^{OLDEST} .* git fetch --unshallow"):
        tag_releases(shallow, RELEASES)


def test_no_file_that_people_edit_is_gone(history: Path) -> None:
    """An update would delete it with what they have written, without a conflict."""
    names = {
        version: set(
            map(
                rendered_name,
                git(history, "ls-tree", "-r", "--name-only", f"{version}:template").splitlines(),
            )
        )
        for version in [*VERSIONS, NEXT]
    }
    for version in VERSIONS:
        gone = names[version] - names[NEXT]
        assert [name for name in gone if is_theirs(name) or name in SHARED] == []


def update_alone(
    release: str, answers: Answers, make: Make, fresh: Fresh, run_copier: RunCopier
) -> None:
    project = make(release, answers)
    before = contents(project)
    output = update(run_copier, project, *trust(release))
    assert "Warning" not in output
    assert conflicts(project) == set()
    assert contents(project) == expected(before, contents(fresh(answers)))
    assert git(project, "diff", "--check") == ""
    lint(project)


@EACH_RELEASE
def test_an_update_alone_from_every_release(
    release: str, answers: Answers, make: Make, fresh: Fresh, run_copier: RunCopier
) -> None:
    update_alone(release, answers, make, fresh, run_copier)


@pytest.mark.long
@COVERING
def test_every_edit_at_once_from_every_release(
    release: str, answers: Answers, make: Make, fresh: Fresh, run_copier: RunCopier
) -> None:
    project = make(release, answers)
    edits = possible(EVERYTHING, release, answers)
    found = assert_survive(edits, project, fresh(answers), run_copier, *trust(release))
    assert found <= BEFORE_THE_ANCHORS
    assert_second_update_changes_nothing(run_copier, project)


def resolve(project: Path) -> None:
    """Keep both sides of each conflict."""
    for name in conflicts(project):
        path = project / name
        text = path.read_text(encoding="utf-8")
        markers = r"^(<{7} before updating|={7}|>{7} after updating)\n"
        path.write_text(re.sub(markers, "", text, flags=re.MULTILINE), encoding="utf-8")


def assert_works(project: Path) -> None:
    """What the runbook says to run after an update."""
    for command in (["sync", "--quiet"], ["run", "mypy"], ["run", "pytest", "-q"]):
        done = subprocess.run(
            [tool("uv"), *command],
            cwd=project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.long
def test_the_oldest_release_with_new_features_works(
    make: Make, fresh: Fresh, run_copier: RunCopier
) -> None:
    """Its app/main.py and app/settings.py know nothing of features, and need not."""
    features = {"features": ["conversations", "oauth"]}
    project = make(OLDEST, PRODUCTION)
    found = assert_survive(
        possible(EVERYTHING, OLDEST, PRODUCTION),
        project,
        fresh({**PRODUCTION, **features}),
        run_copier,
        "--data=features=[conversations, oauth]",
        *trust(OLDEST),
    )
    assert found <= BEFORE_THE_ANCHORS
    resolve(project)
    assert_works(project)
