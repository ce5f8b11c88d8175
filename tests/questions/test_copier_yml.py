"""copier.yml says what it means: Copier passes over every key that it does not know."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import copier
import pytest
from jinja2 import nodes
from packaging.version import Version

from support import (
    ASKED,
    ONLY_WITH,
    QUESTIONS,
    REFUSED_ANSWERS,
    SELECTS,
    SETTINGS,
    SEVERAL,
    TYPED,
    labels,
)
from trackbed.internals import Question, Worker, template

DEFAULTS = {
    "project_name": ("str", "Billing"),
    "database": ("str", "sqlite"),
    "project_description": (
        "str",
        "A web service with its data in SQLite, made to run on Railway.",
    ),
    "profile": ("str", "pilot"),
    "volume_path": ("str", "/data"),
    "workers": ("int", 1),
    "replicas": ("int", 2),
    "backup": ("str", "volume"),
    "features": ("str", []),
    "ai_provider": ("str", "echo"),
    "oauth_providers": ("str", ["google"]),
    "builder": ("str", "dockerfile"),
    "python_version": ("str", "3.13"),
    "ci": ("str", "github"),
}

FROM_HOOK = "{{% from pathjoin('hooks', 'validators.jinja') import {name} as valid %}}{{{{ valid("


@pytest.fixture(scope="module")
def validators(snapshot: Path) -> Iterable[Any]:
    with Worker(src_path=str(snapshot)) as worker:
        yield worker.jinja_env.get_template("hooks/validators.jinja").module


def known_settings() -> set[str]:
    source = inspect.getsource(template)
    read = re.findall(r'config_data(?:\.get\(|\[)\s*"(\w+)"', source)
    raw = re.findall(r'_raw_config\.get\(\s*"_(\w+)"', source)
    return {*read, *raw}


def known_question_keys() -> set[str]:
    internal = {"var_name", "answers", "context", "jinja_env", "settings"}
    return {field.name for field in fields(Question)} - internal


def test_copier_knows_every_setting() -> None:
    assert {"subdirectory", "migrations", "envops", "min_copier_version"} <= known_settings()
    assert SETTINGS.keys() <= known_settings()


def test_installed_copier_is_new_enough() -> None:
    assert Version(SETTINGS["min_copier_version"]) <= Version(copier.__version__)


def test_nothing_asks_for_trust() -> None:
    assert not SETTINGS.keys() & {"tasks", "jinja_extensions"}
    for migration in SETTINGS.get("migrations", []):
        assert isinstance(migration, dict), migration
        assert str(Version(migration["version"])) == migration["version"]


def test_undefined_names_stop_a_render() -> None:
    assert SETTINGS["envops"]["undefined"] == "jinja2.StrictUndefined"


def test_files_end_as_the_template_ends_them() -> None:
    assert SETTINGS["envops"]["keep_trailing_newline"] is True


@pytest.mark.parametrize("setting", ["exclude", "skip_if_exists"])
def test_paths_in_settings_exist(setting: str, snapshot: Path) -> None:
    paths = re.sub(r"(?s)\{%.*?%\}", "", "\n".join(SETTINGS[setting])).split()
    literal = [path.lstrip("/") for path in paths if "/" in path]
    assert literal
    for path in literal:
        plain = snapshot / "template" / path
        assert plain.exists() or plain.with_name(f"{plain.name}.jinja").exists(), path


@pytest.mark.parametrize("name", QUESTIONS)
def test_copier_knows_every_key(name: str) -> None:
    assert QUESTIONS[name].keys() <= known_question_keys()
    for choice in QUESTIONS[name].get("choices", {}).values():
        if isinstance(choice, dict):
            assert choice.keys() <= {"value", "validator"}


def test_questions_and_their_order() -> None:
    assert list(ASKED) == list(DEFAULTS)
    names = list(QUESTIONS)
    computed = [name for name in names[1:-1] if name not in ASKED]
    assert names == ["refuse_given", *DEFAULTS, *computed, "refuse_combination"]


def test_hook_knows_the_same_questions(validators: ModuleType) -> None:
    assert sorted(validators.questions) == sorted(ASKED)


@pytest.mark.parametrize(("name", "value", "message"), REFUSED_ANSWERS)
def test_the_last_question_looks_at_every_answer(
    name: str, value: Any, message: str, validators: Any
) -> None:
    # it is recorded where it is not asked, too
    answers = "dict(_copier_answers, volume_path=volume_path)"
    assert f"final(_copier_conf, {answers})" in QUESTIONS["refuse_combination"]["default"]
    good = {question: default for question, (_, default) in DEFAULTS.items()}
    conf = {"data": {}}
    assert validators.final(conf, good) == ""
    assert validators.final(conf, {**good, name: value}) == f"{name}: {message}"


def test_types_and_defaults(snapshot: Path, tmp_path: Path) -> None:
    folder = tmp_path / "billing"
    worker = copier.run_copy(str(snapshot), folder, defaults=True, quiet=True, pretend=True)
    answers = worker.answers.combined
    assert {name: (ASKED[name]["type"], answers[name]) for name in ASKED} == DEFAULTS


@pytest.mark.parametrize("name", sorted(QUESTIONS.keys() - ASKED.keys()))
def test_hidden_questions_are_always_hidden(name: str) -> None:
    assert QUESTIONS[name]["when"] is False
    assert "default" in QUESTIONS[name]


def test_questions_are_asked_with_an_answer_to_another() -> None:
    conditional = {name: question["when"] for name, question in ASKED.items() if "when" in question}
    assert conditional == {
        name: f"{{{{ '{value}' in {other} }}}}"
        if other in SEVERAL
        else f"{{{{ {other} == '{value}' }}}}"
        for name, (other, value) in ONLY_WITH.items()
    }
    for name, (other, value) in ONLY_WITH.items():
        assert value in labels(other).values()
        assert list(ASKED).index(other) < list(ASKED).index(name)


@pytest.mark.parametrize("name", ASKED)
def test_help(name: str) -> None:
    lines = ASKED[name]["help"].splitlines()
    assert len(lines) >= 2, "a question, and what to answer"
    assert lines[0].endswith("?")
    assert "Example" in ASKED[name]["help"]
    assert max(map(len, lines)) <= 78


@pytest.mark.parametrize("name", SELECTS)
def test_choices_are_labelled(name: str) -> None:
    choices = labels(name)
    assert all(label != value for label, value in choices.items())
    assert len(set(choices.values())) == len(choices)
    assert max(map(len, choices)) <= 74
    recommended = {value for label, value in choices.items() if "recommended" in label}
    default = DEFAULTS[name][1]
    assert recommended >= set(default if name in SEVERAL else [default])


@pytest.mark.parametrize("name", TYPED)
def test_typed_answers_are_validated_in_the_hook(name: str) -> None:
    assert ASKED[name]["validator"] == f"{FROM_HOOK.format(name=name)}{name}) }}}}"


@pytest.mark.parametrize("name", SELECTS)
def test_choices_are_validated_in_the_hook(name: str) -> None:
    # Copier asks no validator for a single choice; of several, one may have to be taken.
    at_least_one = {"oauth_providers": f"{FROM_HOOK.format(name=name)}{name}) }}}}"}
    assert ASKED[name].get("validator") == at_least_one.get(name)
    for choice in ASKED[name]["choices"].values():
        if isinstance(choice, dict):
            assert FROM_HOOK.format(name=name).removesuffix("{{ valid(") in choice["validator"]


def test_hook_knows_the_same_choices(validators: ModuleType) -> None:
    assert validators.choices == {name: list(labels(name).values()) for name in SELECTS}


def prompted_messages(validators: Any) -> set[str]:
    messages = {
        getattr(validators, name)(value) for name, value, _ in REFUSED_ANSWERS if name in TYPED
    }
    return messages | {
        validators.python_version("3.14", "nixpacks"),
        validators.oauth_providers([]),
        validators.backup("volume", "postgresql"),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [refused for refused in REFUSED_ANSWERS if refused[0] in TYPED],
)
def test_macro_refuses(name: str, value: Any, message: str, validators: Any) -> None:
    assert getattr(validators, name)(value) == message


def test_messages_fit_the_terminal(validators: Any) -> None:
    messages = prompted_messages(validators)
    assert "" not in messages
    assert max(map(len, messages)) <= 35


@pytest.mark.parametrize("name", SEVERAL)
def test_messages_about_lists_are_short(name: str) -> None:
    assert max(len(message) for question, _, message in REFUSED_ANSWERS if question == name) <= 35


def test_every_message_is_among_those_checked(snapshot: Path, validators: Any) -> None:
    prompted = {"is_text", "python_version", "oauth_providers", "backup", *TYPED}
    with Worker(src_path=str(snapshot)) as worker:
        source = (snapshot / "hooks/validators.jinja").read_text(encoding="utf-8")
        macros = {
            macro.name: macro for macro in worker.jinja_env.parse(source).find_all(nodes.Macro)
        }
    assert prompted <= macros.keys()
    texts = {
        text
        for name in prompted
        for data in macros[name].find_all(nodes.TemplateData)
        if (text := data.data.strip())
    }
    everything = "\n".join(prompted_messages(validators))
    assert texts
    assert {text for text in texts if text not in everything} == set()
