"""What several test modules share. Questions and choices are read from copier.yml itself."""

import ast
import json
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import yaml
from copier._template import filter_config, load_template_config

ROOT = Path(__file__).parent.parent

Answers = dict[str, str | int]

SETTINGS, QUESTIONS = filter_config(load_template_config(ROOT / "copier.yml"))
ASKED = {name: question for name, question in QUESTIONS.items() if question.get("when", True)}


def labels(name: str) -> dict[str, str]:
    """The choices of a question, if any: what people read, and the answer that it stands for."""
    return {
        label: choice["value"] if isinstance(choice, dict) else choice
        for label, choice in QUESTIONS[name].get("choices", {}).items()
    }


SELECTS = [name for name, question in ASKED.items() if "choices" in question]
TYPED = [name for name in ASKED if name not in SELECTS]

AXES: dict[str, list[Any]] = {
    **{name: list(labels(name).values()) for name in SELECTS},
    "workers": [1, 4],
    "volume_path": ["/data", "/mnt/vol-1"],
}

REFUSED_COMBINATIONS: list[Answers] = [{"builder": "nixpacks", "python_version": "3.14"}]

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
    ("backup", "s3", "Must be litestream, railway or none"),
    ("backup", None, "Must be litestream, railway or none"),
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


def pairs(answers: Mapping[str, Any]) -> set[tuple[tuple[str, Any], ...]]:
    return set(combinations(answers.items(), 2))


def every_combination(axes: Mapping[str, Iterable[Any]]) -> Iterator[Answers]:
    every = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return filter(allowed, every)


def pairwise(axes: Mapping[str, Iterable[Any]]) -> list[Answers]:
    """Few combinations in which every allowed pair of choices occurs."""
    candidates = [(answers, pairs(answers)) for answers in every_combination(axes)]
    missing = set().union(*(covered for _, covered in candidates))
    chosen = []
    while missing:
        answers, covered = max(candidates, key=lambda candidate: len(candidate[1] & missing))
        chosen.append(answers)
        missing -= covered
    return chosen


COMBINATIONS = pairwise(AXES)


def identify(answers: Mapping[str, object]) -> str:
    return "-".join(str(value).strip("/").replace("/", "_") for value in answers.values())


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


def lint(*projects: Path) -> None:
    """Neither the formatter nor the linter would change a thing, and no Dockerfile is faulty."""
    ruff("format", "--check", *projects)
    ruff("check", *projects)
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
