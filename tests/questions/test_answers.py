"""Good answers are taken, bad ones end the copy with one line and leave nothing behind."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import copier
import pytest
import yaml
from copier.errors import UserMessageError

from support import (
    ASKED,
    ONLY_WITH,
    REFUSED_ANSWERS,
    SEVERAL,
    Answers,
    commit,
    files,
    git,
    identify,
    mostly_long,
    recorded,
)
from trackbed.internals import Worker

RunCopier = Callable[..., CompletedProcess[str]]

# what else has to be answered for a question to be asked
NEEDS = {
    name: {other: [value] if other in SEVERAL else value}
    for name, (other, value) in ONLY_WITH.items()
}
FEATURES = {name: value for name, (other, value) in ONLY_WITH.items() if other == "features"}

GOOD_ANSWERS = [
    {"project_name": "B"},
    {"project_name": "7"},
    {"project_name": "B" * 50},
    {"project_name": "خدمة الفواتير"},
    {"project_name": "שירות חשבוניות"},
    {"project_name": "计费服务"},
    {"project_name": "Facturación número 1"},
    {"project_name": "\N{ROCKET} Rocket"},
    {"project_description": "?"},
    {"project_description": "é" * 120},
    {"volume_path": "/mnt/vol-1"},
    {"volume_path": "/var/lib/data"},
    {"volume_path": "/d"},
    {"volume_path": "/application"},
    {"volume_path": "/.data"},
    {"workers": 16},
    {"workers": "16"},
]


def complete(template: Path, folder: Path, **given: object) -> dict[str, Any]:
    """All answers, computed ones too, of somebody who gives some and takes the defaults."""
    with Worker(
        src_path=str(template), dst_path=folder, data=given, defaults=True, quiet=True
    ) as worker:
        worker._ask()
        return dict(worker.answers.combined)


def defaults(template: Path, folder: Path, **given: object) -> dict[str, Any]:
    answers = complete(template, folder, **given)
    return {name: answers[name] for name in ASKED}


def refusal(template: Path, folder: Path, **answers: object) -> str:
    with pytest.raises(UserMessageError) as caught:
        copier.run_copy(str(template), folder, data=answers, defaults=True, quiet=True)
    assert not folder.exists()
    return caught.value.message


def assert_refused(done: CompletedProcess[str], question: str, message: str) -> None:
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "Traceback" not in output
    assert [f"{question}: {message}" in line for line in output.strip().splitlines()] == [True]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("billing_api", "Billing api"),
        ("billing-api.v2", "Billing api v2"),
        ("__Billing--API__", "Billing API"),
        ("été", "Été"),
        ("请求", "请求"),
        ("2026", "2026"),
        ("...", "My service"),
        ("___", "My service"),
        ("\N{ROCKET}", "My service"),
        ("billing" * 12, "Billing" + "billing" * 6 + "b"),
        ("b" * 49 + "-api", "B" + "b" * 48),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b\nc", "A b c"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_name_from_folder(folder: str, name: str, snapshot: Path, tmp_path: Path) -> None:
    assert defaults(snapshot, tmp_path / folder)["project_name"] == name


@pytest.mark.parametrize(
    "folder",
    ["ß" * 50, "ﬁ" * 50, "x\udcff", "a" * 200, "e\u0301te\u0301"],
    ids=lambda folder: ascii(folder)[:40],
)
def test_name_from_any_folder_is_valid(folder: str, snapshot: Path, tmp_path: Path) -> None:
    assert 0 < len(defaults(snapshot, tmp_path / folder)["project_name"]) <= 50


def test_name_from_the_folder_one_is_in(
    template: Path, tmp_path: Path, run_copier: RunCopier
) -> None:
    folder = tmp_path / "billing_api"
    folder.mkdir()
    done = run_copier("copy", "--defaults", template, ".", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert recorded(folder)["project_name"] == "Billing api"


@pytest.mark.parametrize(("profile", "backup"), [("pilot", "volume"), ("production", "litestream")])
def test_profile_moves_defaults(profile: str, backup: str, snapshot: Path, tmp_path: Path) -> None:
    pilot = defaults(snapshot, tmp_path / "billing")
    answers = defaults(snapshot, tmp_path / "billing", profile=profile)
    assert answers == {**pilot, "profile": profile, "backup": backup}


@pytest.mark.parametrize("profile", ["pilot", "production"])
def test_postgresql_moves_defaults(profile: str, snapshot: Path, tmp_path: Path) -> None:
    sqlite = defaults(snapshot, tmp_path / "billing", profile=profile)
    answers = defaults(snapshot, tmp_path / "billing", profile=profile, database="postgresql")
    description = sqlite["project_description"].replace("SQLite", "PostgreSQL")
    changed = {"database": "postgresql", "backup": "railway", "project_description": description}
    assert answers == {**sqlite, **changed}


@pytest.mark.parametrize("backup", ["volume", "railway", "none"])
def test_given_backup_beats_the_profile(backup: str, snapshot: Path, tmp_path: Path) -> None:
    answers = defaults(snapshot, tmp_path / "billing", profile="production", backup=backup)
    assert answers["backup"] == backup


@pytest.mark.parametrize("given", GOOD_ANSWERS, ids=lambda given: ascii(given)[:40])
def test_good_answers(given: dict[str, Any], snapshot: Path, tmp_path: Path) -> None:
    answers = complete(snapshot, tmp_path / "billing", **given)
    for name, value in given.items():
        assert answers[name] == (int(value) if name == "workers" else value)
    assert re.fullmatch(r"[a-z](-?[a-z0-9])*", answers["service_slug"])
    assert len(answers["service_slug"]) <= 50


@pytest.mark.parametrize(
    ("name", "value", "message"), REFUSED_ANSWERS, ids=lambda value: ascii(value)[:40]
)
def test_bad_answers(
    name: str, value: object, message: str, snapshot: Path, tmp_path: Path
) -> None:
    refused = refusal(snapshot, tmp_path / "billing", **{**NEEDS.get(name, {}), name: value})
    assert f"{name}: {message}" in refused
    assert "\n" not in refused


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ("[]", []),
        ("[ ]", []),
        ("[oauth]", ["oauth"]),
        ("[conversations, oauth]", ["conversations", "oauth"]),
        ("[oauth,conversations]", ["conversations", "oauth"]),
        ("[ 'oauth' , \"conversations\" ]", ["conversations", "oauth"]),
        (["oauth", "conversations"], ["conversations", "oauth"]),
        (("oauth",), ["oauth"]),
        ([], []),
    ],
    ids=ascii,
)
def test_a_list_of_features(
    given: object, chosen: list[str], snapshot: Path, tmp_path: Path
) -> None:
    assert defaults(snapshot, tmp_path / "billing", features=given)["features"] == chosen


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ai_provider", "anthropic", "Only with conversations"),
        ("ai_provider", "echo", "Only with conversations"),
        ("oauth_providers", ["microsoft"], "Only with oauth"),
        ("oauth_providers", ["google"], "Only with oauth"),
    ],
)
@pytest.mark.parametrize("other", [True, False], ids=["the other feature", "no feature"])
def test_answers_to_what_is_not_asked(
    name: str, value: object, message: str, other: bool, snapshot: Path, tmp_path: Path
) -> None:
    features = sorted({"conversations", "oauth"} - {FEATURES[name]}) if other else []
    answers = {"features": features, name: value}
    refused = refusal(snapshot, tmp_path / "billing", **answers)
    assert f"{name}: {message}" in refused
    assert "\n" not in refused


def test_a_persons_own_defaults_of_what_is_not_asked(
    template: Path, tmp_path: Path, run_copier: RunCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand in the settings of Copier, and are not given for this project."""
    settings = tmp_path / "settings.yml"
    own = {"ai_provider": "anthropic", "oauth_providers": ["microsoft"], "workers": 2}
    settings.write_text(yaml.safe_dump({"defaults": own}))
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(settings))
    done = run_copier("copy", "--defaults", template, tmp_path / "billing")
    assert done.returncode == 0, done.stderr
    written = recorded(tmp_path / "billing")
    assert written["workers"] == 2
    assert not written.keys() & FEATURES.keys()


def test_every_question_refuses_something() -> None:
    assert {name for name, _, _ in REFUSED_ANSWERS} == ASKED.keys()


@pytest.mark.parametrize("name", ["buider", "Profile", "service_slug", "litestream", "_message"])
def test_unknown_answers(name: str, snapshot: Path, tmp_path: Path) -> None:
    refused = refusal(snapshot, tmp_path / "billing", **{name: "x"})
    assert f"{name}: There is no such question" in refused
    assert "\n" not in refused


def test_nixpacks_has_no_python_3_14(snapshot: Path, tmp_path: Path) -> None:
    refused = refusal(snapshot, tmp_path / "new", builder="nixpacks", python_version="3.14")
    assert "python_version: Nixpacks has no Python 3.14" in refused
    assert "\n" not in refused


@pytest.mark.parametrize("backup", ["litestream", "volume"])
def test_postgresql_has_no_copies_of_a_file(backup: str, snapshot: Path, tmp_path: Path) -> None:
    refused = refusal(snapshot, tmp_path / "new", database="postgresql", backup=backup)
    assert "backup: Only with sqlite, take railway or none" in refused
    assert "\n" not in refused


def test_sqlite_has_one_container(snapshot: Path, tmp_path: Path) -> None:
    refused = refusal(snapshot, tmp_path / "new", replicas=2)
    assert "replicas: Only with postgresql" in refused
    assert "\n" not in refused


@pytest.mark.parametrize(
    ("given", "question", "message"),
    mostly_long(
        [
            (["volume_path=data"], "volume_path", "Must start with /, such as /data"),
            (["workers=two"], "workers", "Must be a number from 1 to 16"),
            (["buider=nixpacks"], "buider", "There is no such question"),
            (["features=oauth"], "features", "Must be a list, such as [oauth]"),
            (["features=[auth]"], "features", "Choose from conversations, oauth"),
            (["features=[oauth]", "oauth_providers=[]"], "oauth_providers", "Choose at least one"),
            (["oauth_providers=[microsoft]"], "oauth_providers", "Only with oauth"),
            (["ai_provider=anthropic"], "ai_provider", "Only with conversations"),
            (["replicas=2"], "replicas", "Only with postgresql"),
            (
                ["database=postgresql", "backup=volume"],
                "backup",
                "Only with sqlite, take railway or none",
            ),
            (
                ["builder=nixpacks", "python_version=3.14"],
                "python_version",
                "Nixpacks has no Python 3.14",
            ),
        ],
        fast=2,
    ),
)
def test_command_refuses_data(
    given: list[str],
    question: str,
    message: str,
    template: Path,
    tmp_path: Path,
    run_copier: RunCopier,
) -> None:
    data = [part for answer in given for part in ("--data", answer)]
    done = run_copier("copy", "--defaults", *data, template, tmp_path / "billing")
    assert_refused(done, question, message)
    assert not (tmp_path / "billing").exists()


@pytest.mark.parametrize(
    ("given", "question", "message"),
    mostly_long(
        [
            ({"project_name": "Billing\0API"}, "project_name", "Must be one line of plain text"),
            ({"features": "oauth"}, "features", "Must be a list, such as [oauth]"),
            ({"features": {"oauth": ["google"]}}, "features", "Must be a list, such as [oauth]"),
            (
                {"builder": "nixpacks", "python_version": 3.14},
                "python_version",
                "Nixpacks has no Python 3.14",
            ),
        ],
        fast=1,
    ),
)
def test_command_refuses_data_file(
    given: dict[str, Any],
    question: str,
    message: str,
    template: Path,
    tmp_path: Path,
    run_copier: RunCopier,
) -> None:
    data = tmp_path / "answers.yml"
    data.write_text(yaml.safe_dump(given))
    done = run_copier("copy", "--defaults", "--data-file", data, template, tmp_path / "billing")
    assert_refused(done, question, message)
    assert not (tmp_path / "billing").exists()


def test_command_takes_a_data_file(template: Path, tmp_path: Path, run_copier: RunCopier) -> None:
    data = tmp_path / "answers.yml"
    data.write_text("profile: production\nworkers: 4\npython_version: 3.12\n")
    done = run_copier("copy", "--defaults", "--data-file", data, template, tmp_path / "billing")
    assert done.returncode == 0, done.stderr
    answers = recorded(tmp_path / "billing")
    assert (answers["backup"], answers["workers"]) == ("litestream", 4)
    assert answers["python_version"] == "3.12"


def test_refused_copy_leaves_an_existing_directory_alone(
    template: Path, tmp_path: Path, run_copier: RunCopier
) -> None:
    folder = tmp_path / "billing"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine\n")
    done = run_copier("copy", "--defaults", "--data", "workers=0", template, folder)
    assert_refused(done, "workers", "Must be a number from 1 to 16")
    assert list(files(folder)) == ["notes.txt"]


def new_project(releases: Path, folder: Path, **answers: object) -> Path:
    """A project of the first release, committed."""
    data = {"project_name": "Billing API", **answers}
    copier.run_copy(str(releases), folder, data=data, vcs_ref="0.1.0", defaults=True, quiet=True)
    commit(folder, "New project")
    return folder


@pytest.fixture(scope="module")
def with_features(releases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with every feature: copy it."""
    folder = tmp_path_factory.mktemp("features") / "billing"
    return new_project(releases, folder, features=["conversations", "oauth"])


def assert_update_is_refused(
    done: CompletedProcess[str], project: Path, question: str, message: str
) -> None:
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "Traceback" not in output
    [refused] = [line for line in output.splitlines() if question in line]
    assert f"{question}: {message}" in refused
    assert git(project, "status", "--porcelain") == ""


@pytest.mark.long
def test_update_refuses_nixpacks_with_python_3_14(
    releases: Path, tmp_path: Path, run_copier: RunCopier
) -> None:
    project = new_project(releases, tmp_path / "billing", python_version="3.14")
    done = run_copier("update", "--defaults", "--data", "builder=nixpacks", cwd=project)
    assert_update_is_refused(done, project, "python_version", "Nixpacks has no Python 3.14")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    mostly_long(
        [
            ("backup", "s3", "Must be litestream, volume, railway or none"),
            ("workers", 99, "Must be a number from 1 to 16"),
            ("features", "oauth", "Must be a list, such as [oauth]"),
            ("features", ["oauth", "auth"], "Choose from conversations, oauth"),
            ("oauth_providers", [], "Choose at least one"),
            ("oauth_providers", ["github"], "Choose from google, microsoft"),
            ("ai_provider", "claude", "Must be echo or anthropic"),
        ],
        fast=2,
    ),
)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["update"], id="update"),
        pytest.param(["recopy", "--overwrite"], marks=pytest.mark.long, id="recopy"),
    ],
)
def test_a_wrong_record_is_refused(
    command: list[str],
    name: str,
    value: object,
    message: str,
    with_features: Path,
    tmp_path: Path,
    run_copier: RunCopier,
) -> None:
    """Copier by itself ends with a traceback, or takes the default without a word."""
    project = tmp_path / "billing"
    shutil.copytree(with_features, project)
    answers = project / ".copier-answers.yml"
    answers.write_text(yaml.safe_dump({**recorded(project), name: value}))
    commit(project, "Edit the answers")
    done = run_copier(*command, "--defaults", cwd=project)
    assert_update_is_refused(done, project, name, message)


@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "given", "kept"),
    [
        (["conversations", "oauth"], "[]", {}),
        pytest.param(
            ["conversations", "oauth"],
            "[conversations]",
            {"ai_provider": "anthropic"},
            marks=pytest.mark.long,
        ),
        pytest.param(["oauth"], "[conversations]", {"ai_provider": "echo"}, marks=pytest.mark.long),
        pytest.param([], "[oauth]", {"oauth_providers": ["google"]}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_features_are_changed_later(
    before: list[str],
    given: str,
    kept: dict[str, object],
    releases: Path,
    render: Callable[..., Path],
    tmp_path: Path,
    run_copier: RunCopier,
) -> None:
    further = {"ai_provider": "anthropic", "oauth_providers": ["microsoft"]}
    answers = {name: further[name] for name in further if FEATURES[name] in before}
    project = new_project(releases, tmp_path / "billing", features=before, **answers)

    done = run_copier(
        "update", "--defaults", "--vcs-ref=:current:", "--data", f"features={given}", cwd=project
    )

    assert done.returncode == 0, done.stderr
    written = recorded(project)
    assert written["features"] == yaml.safe_load(given)
    assert {name: written[name] for name in FEATURES if name in written} == kept
    assert sources(project) == sources(render(features=written["features"], **kept))


@pytest.mark.parametrize(
    "before",
    mostly_long([{}, {"backup": "litestream", "workers": 3}, {"backup": "none"}], fast=1),
    ids=identify,
)
def test_the_database_is_changed_later_and_back(
    before: Answers,
    releases: Path,
    render: Callable[..., Path],
    tmp_path: Path,
    run_copier: RunCopier,
) -> None:
    """A recorded backup that the other engine has not becomes its default, and no path is lost."""
    project = new_project(releases, tmp_path / "billing", volume_path="/mnt/vol-1", **before)
    update = ("update", "--defaults", "--vcs-ref=:current:", "--data")

    done = run_copier(*update, "database=postgresql", cwd=project)

    assert done.returncode == 0, done.stderr
    written = recorded(project)
    backup = "none" if before.get("backup") == "none" else "railway"
    assert written["backup"] == backup
    assert (written["replicas"], written["volume_path"]) == (2, "/mnt/vol-1")
    kept = {"workers": written["workers"], "backup": backup}
    described = {"project_description": written["project_description"]}
    fresh = render(database="postgresql", **kept, **described)
    # The runbook tells the way back to the path of this project, which a new one has not
    assert sources(project, "README.md", "RUNBOOK.md") == sources(fresh, "README.md", "RUNBOOK.md")
    assert "sqlite:////mnt/vol-1/app.db" in (project / "RUNBOOK.md").read_text(encoding="utf-8")

    commit(project, "PostgreSQL")
    done = run_copier(*update, "database=sqlite", cwd=project)

    assert done.returncode == 0, done.stderr
    written = recorded(project)
    assert "replicas" not in written
    assert written["volume_path"] == "/mnt/vol-1"
    assert sources(project) == sources(render(volume_path="/mnt/vol-1", **kept))


def test_a_second_copy_of_postgresql_is_refused_what_needs_a_file(
    releases: Path, tmp_path: Path, run_copier: RunCopier
) -> None:
    project = new_project(releases, tmp_path / "billing")
    given = ("--data", "database=postgresql", "--data", "backup=volume")
    done = run_copier("update", "--defaults", *given, cwd=project)
    assert_update_is_refused(done, project, "backup", "Only with sqlite, take railway or none")


def sources(project: Path, *without: str) -> dict[str, bytes]:
    """All that is in a project, where it comes from aside."""
    names = files(project)
    for name in (".copier-answers.yml", *without):
        del names[name]
    return {name: path.read_bytes() for name, path in names.items()}


@pytest.mark.parametrize(
    "answers",
    mostly_long(
        [
            {"backup": "none", "workers": 3, "volume_path": "/mnt/vol-1"},
            {"database": "postgresql", "replicas": 3},
            {"features": ["conversations"], "ai_provider": "anthropic"},
            {"features": ["conversations", "oauth"], "oauth_providers": ["google", "microsoft"]},
        ],
        fast=2,
    ),
    ids=identify,
)
def test_another_projects_answers_serve_as_a_data_file(
    answers: Answers,
    run_copier: RunCopier,
    template: Path,
    render: Callable[..., Path],
    tmp_path: Path,
) -> None:
    other = render(**answers)
    project = tmp_path / "project"
    done = run_copier(
        "copy", "--defaults", "--data-file", other / ".copier-answers.yml", template, project
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = recorded(project), recorded(other)
    assert answers.items() <= ours.items()
    assert {name: ours.get(name) for name in ASKED} == {name: theirs.get(name) for name in ASKED}
