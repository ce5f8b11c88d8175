"""Each edit, from every release and with every answer: in its place after the update."""

from collections import Counter

import pytest
from packaging.version import Version

from cases import Fresh, Make, assert_survive, possible
from edits import BUNDLES, EDITS
from history import VERSIONS, RunCopier, trust
from support import AXES, Answers, identify_value, pairwise

ANSWERS = {
    **{name: AXES[name] for name in ("builder", "ci", "workers", "volume_path")},
    # those that every release has; test_answers_changed.py takes the others
    "backup": ["litestream", "railway", "none"],
    "python_version": ["3.13", "3.12"],
}

Case = tuple[str, list[str], Answers]


def needs(bundle: list[str]) -> Answers:
    return {name: value for edit in bundle for name, value in EDITS[edit].needs.items()}


def cases() -> list[Case]:
    """Pairwise over releases, bundles of edits, and the answers that those leave open."""
    found: dict[str, Case] = {}
    for row in pairwise({"release": VERSIONS, "bundle": BUNDLES, **ANSWERS}):
        release, bundle = row["release"], row["bundle"]
        assert isinstance(release, str)
        assert isinstance(bundle, list)
        answers = {name: row[name] for name in ANSWERS} | needs(bundle)
        case = (release, bundle, answers)
        found.setdefault(repr(case), case)
    return list(found.values())


def identify_case(case: Case) -> str:
    release, bundle, answers = case
    return "-".join([release, bundle[0], *map(identify_value, answers.values())])


CASES = cases()


def test_every_edit_is_in_one_bundle() -> None:
    assert Counter(name for bundle in BUNDLES for name in bundle) == Counter(EDITS.keys())


def test_every_edit_meets_every_release_and_answer() -> None:
    for bundle in BUNDLES:
        met = [(release, answers) for release, edits, answers in CASES if edits == bundle]
        assert {release for release, _ in met} == set(VERSIONS), bundle
        for name, values in ANSWERS.items():
            wanted = {needs(bundle).get(name)} if name in needs(bundle) else set(values)
            assert {answers[name] for _, answers in met} == wanted, (bundle, name)
    assert {
        (edit.name, Version(release))
        for release, bundle, answers in CASES
        for edit in possible(bundle, release, answers)
    } == {
        (edit.name, Version(release))
        for edit in EDITS.values()
        for release in VERSIONS
        if Version(release) >= edit.since
    }


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=identify_case)
def test_edits(case: Case, make: Make, fresh: Fresh, run_copier: RunCopier) -> None:
    release, bundle, answers = case
    edits = possible(bundle, release, answers)
    assert_survive(edits, make(release, answers), fresh(answers), run_copier, *trust(release))
