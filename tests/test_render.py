"""Every choice and every pair of choices gives a project in which each file is sound."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import copier
import pytest
from copier._main import Worker

from support import (
    ASKED,
    AXES,
    COMBINATIONS,
    ROOT,
    Answers,
    constants,
    every_combination,
    files,
    git,
    identify,
    labels,
    lint,
    load_json,
    load_toml,
    load_yaml,
    pairs,
    parse_everything,
    recorded,
)

Render = Callable[..., Path]

START = "python -m app"

# file, and the answer that it belongs to
CONDITIONAL: dict[str, tuple[str, str]] = {
    ".dockerignore": ("builder", "dockerfile"),
    ".github/workflows/ci.yml": ("ci", "github"),
    "Dockerfile": ("builder", "dockerfile"),
    **{
        f"app/chassis/litestream/{name}.py": ("backup", "litestream")
        for name in ("__init__", "checks", "control", "flush", "monitor", "process", "settings")
    },
    "litestream.yml": ("backup", "litestream"),
    "nixpacks.toml": ("builder", "nixpacks"),
    "railpack.json": ("builder", "railpack"),
    "tests/chassis/test_litestream.py": ("backup", "litestream"),
    "tests/chassis/test_litestream_monitor.py": ("backup", "litestream"),
}

# Each would override what the template sets: a version, the lock, or the kind of project.
NEVER = {
    ".python-version",
    ".tool-versions",
    "Pipfile",
    "main.py",
    "package.json",
    "railway.toml",
    "requirements.txt",
    "runtime.txt",
}


@dataclass(frozen=True)
class Project:
    answers: Answers
    path: Path

    def text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=COMBINATIONS, ids=identify)
def project(request: pytest.FixtureRequest, render: Render) -> Project:
    return Project(request.param, render(**request.param))


@pytest.fixture(scope="module")
def uv_version(snapshot: Path) -> str:
    with Worker(src_path=str(snapshot)) as worker:
        platform: Any = worker.jinja_env.get_template("hooks/platform.jinja").module
    return platform.uv_version


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    return {name: (file.read_bytes(), file.stat().st_mode) for name, file in files(path).items()}


def rendered_name(name: str) -> str:
    name = name.replace("{{ _copier_conf.answers_file }}", ".copier-answers.yml")
    return re.sub(r"\{%.*?%\}", "", name).removesuffix(".jinja")


def images(project: Project) -> list[str]:
    return re.findall(r"^FROM (\S+)", project.text("Dockerfile"), re.MULTILINE)


def test_answers_are_recorded(project: Project) -> None:
    written = recorded(project.path)
    assert project.answers.items() <= written.items()
    assert written.keys() == {"_commit", "_src_path", *ASKED}


def test_files_parse(project: Project) -> None:
    parse_everything(project.path)


def test_files_are_lint_free(project: Project) -> None:
    lint(project.path)


def test_second_render_is_equal(project: Project, template: Path, tmp_path: Path) -> None:
    data = {"project_name": "Billing API", **project.answers}
    copier.run_copy(str(template), tmp_path / "again", data=data, defaults=True, quiet=True)
    assert contents(tmp_path / "again") == contents(project.path)


def test_nothing_is_left_of_the_template(project: Project) -> None:
    for name in files(project.path):
        assert not name.endswith(".jinja")
        assert not re.search(r"\{\{|\{%", name)
        assert not re.search(r"(?<!\$)\{\{|\{%|\{#-", project.text(name)), name


def test_files_end_with_one_line_break(project: Project) -> None:
    for name in files(project.path):
        text = project.text(name)
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), name
        assert "\r" not in text, name


def test_conditional_files(project: Project) -> None:
    names = files(project.path).keys()
    for name, (question, value) in CONDITIONAL.items():
        assert (name in names) == (project.answers[question] == value), name
    assert not NEVER & names
    directories = {name.split("/")[0] for name in names if "/" in name}
    assert (".github" in directories) == (project.answers["ci"] == "github")


def test_start_command(project: Project) -> None:
    assert json.loads(project.text("railway.json"))["deploy"]["startCommand"] == START
    assert f'startCommand="{START}"' in project.text(".railway/railway.py")
    assert project.text("Procfile") == f"web: {START}\n"
    match project.answers["builder"]:
        case "dockerfile":
            commands = re.findall(r"^(?:CMD|ENTRYPOINT) .*", project.text("Dockerfile"), re.M)
            assert commands == [f"CMD {json.dumps(START.split())}"]
        case "railpack":
            assert load_json(project.path / "railpack.json")["deploy"]["startCommand"] == START
        case "nixpacks":
            assert load_toml(project.path / "nixpacks.toml")["start"] == {"cmd": START}


def test_deployed_python(project: Project) -> None:
    version = project.answers["python_version"]
    match project.answers["builder"]:
        case "dockerfile":
            pythons = {image for image in images(project) if image.startswith("python:")}
            assert pythons == {f"python:{version}-slim-trixie"}
        case "railpack":
            assert load_json(project.path / "railpack.json")["packages"] == {"python": version}
        case "nixpacks":
            variables = load_toml(project.path / "nixpacks.toml")["variables"]
            assert variables["NIXPACKS_PYTHON_VERSION"] == version
    if project.answers["ci"] == "github":
        jobs = load_yaml(project.path / ".github/workflows/ci.yml")["jobs"]
        assert {job["env"]["UV_PYTHON"] for job in jobs.values()} == {version}
    assert load_toml(project.path / "pyproject.toml")["project"]["requires-python"] == ">=3.11"


def test_one_version_of_uv(project: Project, uv_version: str) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", uv_version)
    match project.answers["builder"]:
        case "dockerfile":
            uv = {image for image in images(project) if "/uv:" in image}
            assert uv == {f"ghcr.io/astral-sh/uv:{uv_version}"}
        case "nixpacks":
            variables = load_toml(project.path / "nixpacks.toml")["variables"]
            assert variables["NIXPACKS_UV_VERSION"] == uv_version
    if project.answers["ci"] == "github":
        workflow = project.text(".github/workflows/ci.yml")
        assert re.findall(r"uv==(\S+)", workflow) == [uv_version]


def test_volume_path(project: Project) -> None:
    path = project.answers["volume_path"]
    match project.answers["builder"]:
        case "dockerfile":
            assert f"VOLUME_PATH={path}\n" in project.text("Dockerfile")
        case "railpack":
            deploy = load_json(project.path / "railpack.json")["deploy"]
            assert deploy["variables"]["VOLUME_PATH"] == path
        case "nixpacks":
            variables = load_toml(project.path / "nixpacks.toml")["variables"]
            assert variables["VOLUME_PATH"] == path


def test_example_variables(project: Project) -> None:
    lines = project.text(".env.example").splitlines()
    assignments = [line for line in lines if line and not line.startswith("# ")]
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*=\S*", line) for line in assignments)
    variables = dict(line.split("=", 1) for line in assignments)
    assert len(variables) == len(assignments)
    assert variables["WORKERS"] == str(project.answers["workers"])
    assert variables["SECRET_KEY"] == ""
    litestream = any(name.startswith("LITESTREAM_") for name in variables)
    assert litestream == (project.answers["backup"] == "litestream")


def test_workflow_may_only_read(render: Render) -> None:
    path = render(**{**COMBINATIONS[0], "ci": "github"}) / ".github/workflows/ci.yml"
    workflow = load_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert actions
    text = path.read_text(encoding="utf-8")
    for action in actions:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40}", action)
        assert re.search(rf"{re.escape(action)} # v\d", text), "the version, for people"
    assert "secrets." not in text


def test_combinations_hold_every_pair() -> None:
    possible = set().union(*map(pairs, every_combination(AXES)))
    assert set().union(*map(pairs, COMBINATIONS)) == possible
    chosen = {item for answers in COMBINATIONS for item in answers.items()}
    assert chosen == {(name, value) for name, values in AXES.items() for value in values}


def test_every_file_is_rendered_by_some_answers(render: Render, snapshot: Path) -> None:
    rendered = [
        files(render(builder=builder, backup="litestream", ci="github"))
        for builder in labels("builder").values()
    ]
    expected = {rendered_name(name) for name in files(snapshot / "template")}
    assert set().union(*rendered) == expected


def test_every_condition_is_tested(snapshot: Path) -> None:
    names = files(snapshot / "template")
    assert {rendered_name(name) for name in names if "{% if" in name} == CONDITIONAL.keys()


def test_git_ignores_no_file_of_the_template(snapshot: Path) -> None:
    ignored = git(ROOT, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "template")
    with Worker(src_path=str(snapshot)) as worker:
        patterns = [pattern for pattern in worker.template.exclude if "{%" not in pattern]
        excluded = worker._path_matcher(patterns)
    names = [name for name in ignored.split("\0") if name]
    assert [name for name in names if not excluded(Path(name))] == []


def test_every_deadline_of_a_stop_fits_into_the_one_around_it(render: Render) -> None:
    project = render(backup="litestream")
    inside = constants(project / "app" / "chassis" / "deadlines.py")
    replication = load_yaml(project / "litestream.yml")["shutdown-sync-timeout"]
    draining = load_json(project / "railway.json")["deploy"]["drainingSeconds"]

    assert inside["REQUESTS"] < inside["WORKERS"]
    assert inside["WORKERS"] + inside["FLUSH"] + int(replication.removesuffix("s")) < draining


def test_the_platform_asks_the_health_route(render: Render) -> None:
    project = render()
    asked = load_json(project / "railway.json")["deploy"]["healthcheckPath"]

    health = (project / "app" / "chassis" / "health.py").read_text(encoding="utf-8")
    assert f'APIRouter(prefix="{asked}"' in health
