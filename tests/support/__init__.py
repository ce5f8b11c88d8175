"""What several test modules share. Questions and choices are read from copier.yml itself."""

import ast
import json
import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import pytest
import yaml

from trackbed.internals import filter_config, load_template_config

ROOT = Path(__file__).parents[2]

Answers = dict[str, str | int | list[str]]

SETTINGS, QUESTIONS = filter_config(load_template_config(ROOT / "copier.yml"))
ASKED = {name: question for name, question in QUESTIONS.items() if question.get("when", True)}


def labels(name: str) -> dict[str, str]:
    """The choices of a question, if any: what people read, and the answer that it stands for."""
    return {
        label: choice["value"] if isinstance(choice, dict) else choice
        for label, choice in QUESTIONS[name].get("choices", {}).items()
    }


SELECTS = [name for name, question in ASKED.items() if "choices" in question]
SEVERAL = [name for name in SELECTS if QUESTIONS[name].get("multiselect")]
TYPED = [name for name in ASKED if name not in SELECTS]

# questions that are asked only with an answer to another one
ONLY_WITH = {
    "volume_path": ("database", "sqlite"),
    "replicas": ("database", "postgresql"),
    "ai_provider": ("features", "conversations"),
    "oauth_providers": ("features", "oauth"),
}


def selections(name: str) -> list[Any]:
    """What may be answered where several choices may be taken: a list of any of them."""
    choices = list(labels(name).values())
    every = chain(*(combinations(choices, size) for size in range(len(choices) + 1)))
    return [list(some) for some in every if some or name not in ONLY_WITH]


AXES: dict[str, list[Any]] = {
    **{name: selections(name) for name in SEVERAL},
    **{name: list(labels(name).values()) for name in SELECTS if name not in SEVERAL},
    "workers": [1, 4],
    "replicas": [2, 3],
    "volume_path": ["/data", "/mnt/vol-1"],
}

REFUSED_COMBINATIONS: list[Answers] = [
    {"builder": "nixpacks", "python_version": "3.14"},
    {"database": "postgresql", "backup": "litestream"},
    {"database": "postgresql", "backup": "volume"},
]

# question, bad answer, message
REFUSED_ANSWERS: list[tuple[str, object, str]] = [
    ("project_name", "", "Needs a letter or digit"),
    ("project_name", "___", "Needs a letter or digit"),
    ("project_name", "!?", "Needs a letter or digit"),
    ("project_name", "\N{ROCKET}", "Needs a letter or digit"),
    ("project_name", "x" * 51, "At most 50 characters"),
    ("project_name", " Billing", "No spaces at the start or end"),
    ("project_name", "Billing ", "No spaces at the start or end"),
    ("project_name", "Billing\nAPI", "Must be one line of plain text"),
    ("project_name", "Billing\tAPI", "Must be one line of plain text"),
    ("project_name", "Billing\N{LINE SEPARATOR}API", "Must be one line of plain text"),
    ("project_name", "Billing \N{RIGHT-TO-LEFT OVERRIDE}IPA", "Must not change text direction"),
    ("project_name", 2026, "Must be text"),
    ("project_name", None, "Must be text"),
    ("project_name", ["Billing"], "Must be text"),
    ("database", "mysql", "Must be sqlite or postgresql"),
    ("database", "PostgreSQL", "Must be sqlite or postgresql"),
    ("database", None, "Must be sqlite or postgresql"),
    ("project_description", "", "Write one sentence"),
    ("project_description", "x" * 121, "At most 120 characters"),
    ("project_description", " Sends invoices.", "No spaces at the start or end"),
    ("project_description", "Sends\ninvoices.", "Must be one line of plain text"),
    ("project_description", "Sends \N{FIRST STRONG ISOLATE}it", "Must not change text direction"),
    ("project_description", True, "Must be text"),
    ("profile", "prod", "Must be pilot or production"),
    ("profile", "Pilot", "Must be pilot or production"),
    ("profile", "", "Must be pilot or production"),
    ("profile", None, "Must be pilot or production"),
    ("volume_path", "", "Must start with /, such as /data"),
    ("volume_path", "data", "Must start with /, such as /data"),
    ("volume_path", "~/data", "Must start with /, such as /data"),
    ("volume_path", 7, "Must start with /, such as /data"),
    ("volume_path", "/", "Must not be / itself"),
    ("volume_path", "/my data", "Letters, digits, . _ - and / only"),
    ("volume_path", "/data\n", "Letters, digits, . _ - and / only"),
    ("volume_path", "/données", "Letters, digits, . _ - and / only"),
    ("volume_path", "/$HOME", "Letters, digits, . _ - and / only"),
    ("volume_path", "//data", "No //, /., /.. or / at the end"),
    ("volume_path", "/data/", "No //, /., /.. or / at the end"),
    ("volume_path", "/data/.", "No //, /., /.. or / at the end"),
    ("volume_path", "/data/../etc", "No //, /., /.. or / at the end"),
    ("volume_path", "/" + "d" * 200, "At most 200 characters"),
    ("volume_path", "/app", "Not /app or a system directory"),
    ("volume_path", "/app/data", "Not /app or a system directory"),
    ("volume_path", "/etc/x", "Not /app or a system directory"),
    ("volume_path", "/proc", "Not /app or a system directory"),
    ("volume_path", "/var/lib", "Not /app or a system directory"),
    ("volume_path", "/mnt", "Not /app or a system directory"),
    ("workers", 0, "Must be a number from 1 to 16"),
    ("workers", 17, "Must be a number from 1 to 16"),
    ("workers", -1, "Must be a number from 1 to 16"),
    ("workers", 1.5, "Must be a number from 1 to 16"),
    ("workers", True, "Must be a number from 1 to 16"),
    ("workers", None, "Must be a number from 1 to 16"),
    ("workers", "", "Must be a number from 1 to 16"),
    ("workers", "two", "Must be a number from 1 to 16"),
    ("workers", "0x2", "Must be a number from 1 to 16"),
    ("workers", "1" * 5000, "Must be a number from 1 to 16"),
    ("replicas", 0, "Must be a number from 1 to 16"),
    ("replicas", 17, "Must be a number from 1 to 16"),
    ("replicas", True, "Must be a number from 1 to 16"),
    ("replicas", "two", "Must be a number from 1 to 16"),
    ("backup", "s3", "Must be litestream, volume, railway or none"),
    ("backup", None, "Must be litestream, volume, railway or none"),
    ("features", "", "Must be a list, such as [oauth]"),
    ("features", "oauth", "Must be a list, such as [oauth]"),
    ("features", "conversations, oauth", "Must be a list, such as [oauth]"),
    ("features", "- oauth", "Must be a list, such as [oauth]"),
    ("features", "[oauth", "Must be a list, such as [oauth]"),
    ("features", "[oauth]\n", "Must be a list, such as [oauth]"),
    ("features", "{oauth: true}", "Must be a list, such as [oauth]"),
    ("features", {"oauth": True}, "Must be a list, such as [oauth]"),
    ("features", {"oauth"}, "Must be a list, such as [oauth]"),
    ("features", None, "Must be a list, such as [oauth]"),
    ("features", True, "Must be a list, such as [oauth]"),
    ("features", ["auth"], "Choose from conversations, oauth"),
    ("features", ["oauth", None], "Choose from conversations, oauth"),
    ("features", [["oauth"]], "Choose from conversations, oauth"),
    ("features", [{"oauth": True}], "Choose from conversations, oauth"),
    ("features", b"oauth", "Choose from conversations, oauth"),
    ("features", "[OAuth]", "Choose from conversations, oauth"),
    ("features", "[,]", "Choose from conversations, oauth"),
    ("features", "[[oauth]]", "Choose from conversations, oauth"),
    ("features", "['oauth\"]", "Choose from conversations, oauth"),
    ("features", "[oauth\x1f]", "Choose from conversations, oauth"),
    ("features", "[oauth, oauth]", "Take each of them once"),
    ("features", ["oauth", "oauth"], "Take each of them once"),
    ("ai_provider", "claude", "Must be echo or anthropic"),
    ("ai_provider", "[anthropic]", "Must be echo or anthropic"),
    ("ai_provider", ["anthropic"], "Must be echo or anthropic"),
    ("ai_provider", None, "Must be echo or anthropic"),
    ("oauth_providers", "google", "Must be a list, such as [microsoft]"),
    ("oauth_providers", "[google, github]", "Choose from google, microsoft"),
    ("oauth_providers", ["google", "google"], "Take each of them once"),
    ("oauth_providers", [], "Choose at least one"),
    ("oauth_providers", "[]", "Choose at least one"),
    ("oauth_providers", "[ ]", "Choose at least one"),
    ("builder", "heroku", "Must be dockerfile, railpack or nixpacks"),
    ("builder", "Dockerfile", "Must be dockerfile, railpack or nixpacks"),
    ("python_version", "3.10", "Must be 3.13, 3.14, 3.12 or 3.11"),
    ("python_version", "3", "Must be 3.13, 3.14, 3.12 or 3.11"),
    ("python_version", "3.13.1", "Must be 3.13, 3.14, 3.12 or 3.11"),
    ("ci", "gitlab", "Must be github or none"),
    ("ci", False, "Must be github or none"),
]


def allowed(answers: Mapping[str, object]) -> bool:
    return not any(refused.items() <= answers.items() for refused in REFUSED_COMBINATIONS)


def applies(name: str, answers: Mapping[str, Any]) -> bool:
    """Whether a question is asked of somebody with these answers."""
    if name not in ONLY_WITH:
        return True
    other, value = ONLY_WITH[name]
    given = answers.get(other, QUESTIONS[other]["default"])
    return value in given if isinstance(given, list) else value == given


def hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def items(answers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, hashable(value)) for name, value in answers.items()]


def pairs(answers: Mapping[str, Any]) -> set[tuple[tuple[str, Any], ...]]:
    return set(combinations(items(answers), 2))


def every_combination(axes: Mapping[str, Iterable[Any]]) -> Iterator[Answers]:
    always = {name: values for name, values in axes.items() if name not in ONLY_WITH}
    for chosen in product(*always.values()):
        answers = dict(zip(always, chosen, strict=True))
        if not allowed(answers):
            continue
        further = [name for name in axes if name in ONLY_WITH and applies(name, answers)]
        for more in product(*(axes[name] for name in further)):
            yield {**answers, **dict(zip(further, more, strict=True))}


def pairwise(axes: Mapping[str, Iterable[Any]]) -> list[Answers]:
    """Few combinations in which every allowed pair of choices occurs."""
    bits: dict[object, int] = defaultdict(lambda: 1 << len(bits))
    candidates = [
        (answers, sum(bits[pair] for pair in pairs(answers))) for answers in every_combination(axes)
    ]
    missing = sum(bits.values())
    chosen = []
    while missing:
        answers, covered = max(
            candidates, key=lambda candidate: (candidate[1] & missing).bit_count()
        )
        chosen.append(answers)
        missing &= ~covered
    return chosen


COMBINATIONS = pairwise(AXES)


def mostly_long(values: Sequence[Any], fast: int = 1) -> list[Any]:
    """Return the values of a test's parameter, the first few of them for the fast suite."""
    return [
        *values[:fast],
        *(
            pytest.param(*(value if isinstance(value, tuple) else [value]), marks=pytest.mark.long)
            for value in values[fast:]
        ),
    ]


def identify(answers: Mapping[str, object]) -> str:
    return "-".join(identify_value(value) for value in answers.values())


def identify_value(value: object) -> str:
    if isinstance(value, list):
        return "+".join(value) or "no"
    return str(value).strip("/").replace("/", "_")


def rendered_name(name: str) -> str:
    name = name.replace("{{ _copier_conf.answers_file }}", ".copier-answers.yml")
    # releases before 0.5.0 have conditions in their paths
    return re.sub(r"\{%.*?%\}", "", name).removeprefix("./").removesuffix(".jinja")


def git(directory: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=directory, check=True, capture_output=True, encoding="utf-8"
    ).stdout


def commit(directory: Path, message: str, tag: str | None = None) -> None:
    """Record all files of a directory, a repository from now on."""
    git(directory, "init", "--quiet")
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", message)
    if tag:
        git(directory, "tag", "--annotate", "--message", tag, tag)


def tool(name: str) -> str:
    """A program that is installed beside this Python, or else one of the path."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name, path=scripts) or shutil.which(name)
    assert found, f"{name} is not installed"
    return found


def files(project: Path) -> dict[str, Path]:
    """Every file by its name in the project, git's own aside."""
    return {
        path.relative_to(project).as_posix(): path
        for path in sorted(project.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(project).parts
    }


def parse_everything(project: Path) -> None:
    """Fails on the first file that its own format's parser refuses."""
    for name, path in files(project).items():
        text = path.read_text(encoding="utf-8")
        match path.suffix:
            case ".py":
                compile(text, name, "exec")
            case ".toml":
                tomllib.loads(text)
            case ".json":
                json.loads(text)
            case ".yml" | ".yaml":
                yaml.safe_load(text)


def ruff(*arguments: str | Path) -> None:
    """Each project is held to the rules in its own pyproject.toml."""
    done = subprocess.run(
        [tool("ruff"), arguments[0], "--no-cache", *arguments[1:]],
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def lint(*projects: Path, options: Sequence[str] = ()) -> None:
    """Neither the formatter nor the linter would change a thing, and no Dockerfile is faulty."""
    ruff("format", "--check", *projects)
    ruff("check", *options, *projects)
    dockerfiles = [path for project in projects if (path := project / "Dockerfile").exists()]
    if dockerfiles:
        command = [tool("hadolint"), "--failure-threshold", "style", *dockerfiles]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr


def constants(path: Path) -> dict[str, Any]:
    """The values of a module's `NAME: Final = value` lines."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    return {
        line.target.id: ast.literal_eval(line.value)
        for line in module.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value
    }


def recorded(project: Path) -> dict[str, Any]:
    """The answers file."""
    return yaml.safe_load((project / ".copier-answers.yml").read_text(encoding="utf-8"))


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
