"""Each edit, from every release and with every answer: in its place after the update."""

from itertools import zip_longest

import pytest
from packaging.version import Version

from cases import Fresh, Make, assert_survive, possible
from edits import EDITS, OWN
from history import VERSIONS, RunCopier, trust
from support import AXES, Answers, identify_value, pairwise

NOT_OWN = [name for name in EDITS if name not in OWN]

# One of the person's own files and one in others: together they make half of the updates.
BUNDLES = [
    [name for name in bundle if name] for bundle in zip_longest(NOT_OWN, OWN * 2, fillvalue="")
][: len(NOT_OWN)]

ANSWERS = {
    **{name: AXES[name] for name in ("backup", "builder", "ci", "workers", "volume_path")},
    "python_version": ["3.13", "3.12"],
}

Case = tuple[str, tuple[str, ...], Answers]


def cases() -> list[Case]:
    """Pairwise over releases, edits and answers; an edit's own needs go before."""
    found: dict[str, Case] = {}
    for row in pairwise({"release": VERSIONS, "bundle": BUNDLES, **ANSWERS}):
        release, bundle, *_ = row.values()
        assert isinstance(release, str)
        assert isinstance(bundle, list)
        answers = {name: row[name] for name in ANSWERS}
        for name in bundle:
            answers |= EDITS[name].needs
        possible_ones = tuple(edit.name for edit in possible(bundle, release, answers))
        found.setdefault(repr((release, possible_ones, answers)), (release, possible_ones, answers))
    return list(found.values())


def identify_case(case: Case) -> str:
    release, bundle, answers = case
    return "-".join([release, "+".join(bundle), *map(identify_value, answers.values())])


CASES = cases()


def test_every_edit_meets_every_release_and_answer() -> None:
    for edit in EDITS.values():
        met = [(release, answers) for release, bundle, answers in CASES if edit.name in bundle]
        known = [release for release in VERSIONS if Version(release) >= edit.since]
        assert {release for release, _ in met} == set(known), edit.name
        for name, values in ANSWERS.items():
            wanted = [edit.needs[name]] if name in edit.needs else values
            assert {answers[name] for _, answers in met} == set(wanted), (edit.name, name)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=identify_case)
def test_edit(case: Case, make: Make, fresh: Fresh, run_copier: RunCopier) -> None:
    release, bundle, answers = case
    edits = possible(bundle, release, answers)
    assert_survive(edits, make(release, answers), fresh(answers), run_copier, *trust(release))
