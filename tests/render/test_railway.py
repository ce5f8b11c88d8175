"""railway.json holds the values, .railway/railway.py declares them, and a second plan says nothing.

The Python file is evaluated with Railway's own SDK, which drops a misspelt keyword silently. The
long suite asks Railway's own engine; what that compares is compared here in the fast one.
"""

import ast
import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import railway_sdk

from support import COMBINATIONS, ROOT, Answers, constants, files, identify, load_json, railway
from support.railway import CONSTANTS, declared, evaluate, fill_in

Render = Callable[..., Path]

BUILD_KEYS = {"builder", "buildCommand", "dockerfilePath", "watchPatterns"}
DEPLOY_KEYS = {
    "cronSchedule",
    "drainingSeconds",
    "healthcheckPath",
    "healthcheckTimeout",
    "limitOverride",
    "numReplicas",
    "overlapSeconds",
    "preDeployCommand",
    "requiredMountPath",
    "restartPolicyMaxRetries",
    "restartPolicyType",
    "sleepApplication",
    "startCommand",
}

# Railway does not store what equals these (its issue cli#1184)
NOT_STORED = {
    "healthcheckTimeout": 300,
    "numReplicas": 1,
    "restartPolicyMaxRetries": 10,
    "restartPolicyType": "ON_FAILURE",
}


def resources(graph: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [resource for resource in graph["resources"] if resource["type"] == kind]


def exactly(values: object) -> str:
    """Tells 1 from true and from 1.0, which == does not."""
    return json.dumps(values, sort_keys=True)


def copy(project: Path, directory: Path) -> Path:
    """Return a copy of a rendered project that may be changed."""
    shutil.copytree(project, directory / "project")
    return directory / "project"


@dataclass(frozen=True)
class Project:
    answers: Answers
    path: Path
    config: dict[str, Any]
    graph: dict[str, Any]
    service: dict[str, Any]


@pytest.fixture(scope="module", params=COMBINATIONS, ids=identify)
def project(
    request: pytest.FixtureRequest, render: Render, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A project whose constants are filled in, evaluated from another directory."""
    directory = tmp_path_factory.mktemp("railway")
    path = copy(render(**request.param), directory)
    without = set() if request.param["backup"] == "litestream" else {"BUCKET_REGION"}
    without |= {"VOLUME_MB"} if request.param["database"] == "postgresql" else set()
    fill_in(path, **{name: CONSTANTS[name] for name in CONSTANTS.keys() - without})
    graph = declared(path, directory)
    [service] = resources(graph, "service")
    return Project(request.param, path, load_json(path / "railway.json"), graph, service)


def test_railway_json_is_declared_without_what_railway_does_not_store(project: Project) -> None:
    deploy = project.config["deploy"]
    dropped = dict(NOT_STORED)
    if project.answers["database"] == "postgresql":
        del dropped["healthcheckTimeout"]
    stored = {name: value for name, value in deploy.items() if dropped.get(name) != value}
    assert exactly(project.service["build"]) == exactly(project.config["build"])
    assert exactly(project.service["deploy"]) == exactly(stored)


def test_values(project: Project) -> None:
    deploy: dict[str, Any]
    if project.answers["database"] == "postgresql":
        before = {"preDeployCommand": ["python -m app migrate"]}
        deploy = {"numReplicas": project.answers["replicas"], "overlapSeconds": 20}
        deploy |= {"drainingSeconds": 40}
    else:
        before = {}
        deploy = {"numReplicas": 1, "drainingSeconds": 30}
        deploy |= {"requiredMountPath": project.answers["volume_path"]}
    expected = {
        "$schema": "https://railway.com/railway.schema.json",
        "build": {"builder": str(project.answers["builder"]).upper()},
        "deploy": {
            "startCommand": "python -m app",
            **before,
            "healthcheckPath": "/health",
            "healthcheckTimeout": 300,
            "restartPolicyType": "ON_FAILURE",
            "restartPolicyMaxRetries": 10,
            **deploy,
        },
    }
    assert exactly(project.config) == exactly(expected)


def test_what_a_plan_compares_is_what_railway_holds(project: Project) -> None:
    environment = railway.live(project.answers)
    held = environment["services"]["service-1"]
    deploy = dict(project.service["deploy"])
    replicas = deploy.pop("numReplicas", 1)
    [place] = held["deploy"].pop("multiRegionConfig").values()

    assert place == {"numReplicas": replicas}
    assert deploy == held["deploy"]
    assert project.service["build"] == held["build"]
    if project.answers["database"] == "postgresql":
        [database] = resources(project.graph, "database")
        assert (
            database["source"]["image"] == environment["services"]["database-1"]["source"]["image"]
        )
        assert database["name"] == "postgres"
        assert not resources(project.graph, "volume")
        assert "volumeAttachments" not in project.service
    else:
        [volume] = resources(project.graph, "volume")
        [attachment] = project.service["volumeAttachments"].values()
        [mount] = held["volumeMounts"].values()
        del attachment["volumeConfig"]
        assert attachment == {"volume": volume["address"], **mount}
        assert not project.service["volumeMounts"], "mounts of what is no volume"
        assert volume["config"] == {"region": CONSTANTS["REGION"], "sizeMB": CONSTANTS["VOLUME_MB"]}
    assert [bucket["config"] for bucket in resources(project.graph, "bucket")] == [
        *environment.get("buckets", {}).values()
    ]
    assert project.service["variables"].keys() == held["variables"].keys()
    for name, value in project.service["variables"].items():
        if name in railway.BUCKET_VARIABLES:
            _, _, bucket = value["resource"].partition(".")
            assert held["variables"][name]["value"] == f"${{{{{bucket}.{value['output']}}}}}"
        elif name == "DATABASE_URL":
            assert value == {
                "type": "reference",
                "resource": "database.postgres",
                "output": "DATABASE_URL",
            }
        else:
            assert value == {"type": "preserve"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("Railway's engine is an npm package, and there is no npm")
    return railway.install_engine(tmp_path_factory.mktemp("engine"))


@pytest.mark.long
def test_a_second_plan_is_empty(project: Project, engine: Path) -> None:
    assert railway.plan(engine, project.graph, railway.live(project.answers)) == []


@pytest.mark.long
def test_the_plan_after_the_first_apply_shows_what_to_fill_in(
    render: Render, engine: Path, tmp_path: Path
) -> None:
    answers: Answers = {"backup": "none", "builder": "dockerfile"}

    [said] = railway.plan(engine, declared(render(**answers), tmp_path), railway.live(answers))

    assert said.startswith("destructive | Update data ")
    assert said.endswith(
        'config.region ("europe-west4-drams3a" → unset) | config.sizeMB (5000 → unset)'
    )


@pytest.mark.long
def test_a_repository_and_more_schedules_are_no_change_once_they_are_applied(
    render: Render, engine: Path, tmp_path: Path
) -> None:
    answers: Answers = {"backup": "none", "builder": "railpack"}
    project = copy(render(**answers), tmp_path)
    fill_in(
        project,
        REGION=CONSTANTS["REGION"],
        VOLUME_MB=CONSTANTS["VOLUME_MB"],
        REPOSITORY="owner/name",
        BACKUP_SCHEDULES=["WEEKLY", "MONTHLY"],
    )
    environment = railway.live(answers)
    service = environment["services"]["service-1"]
    service["source"] = {"repo": "owner/name", "branch": "main"}
    service["volumeMounts"]["volume-1"]["backupSchedules"] = ["WEEKLY", "MONTHLY"]
    assert railway.plan(engine, declared(project, tmp_path), environment) == []

    fill_in(project, REPOSITORY="", BACKUP_SCHEDULES=[])
    disconnected, unscheduled = railway.plan(engine, declared(project, tmp_path), environment)
    assert "source" in disconnected
    assert "backupSchedules" in unscheduled


def test_the_databases_region_is_chosen_or_left_to_railway(render: Render, tmp_path: Path) -> None:
    project = copy(render(database="postgresql"), tmp_path)
    [database] = resources(declared(project, tmp_path), "database")
    assert "deploy" not in database

    fill_in(project, REGION=CONSTANTS["REGION"])
    [database] = resources(declared(project, tmp_path), "database")
    assert database["deploy"] == {"multiRegionConfig": {CONSTANTS["REGION"]: {"numReplicas": 1}}}


@pytest.mark.long
@pytest.mark.parametrize("region", ["", CONSTANTS["REGION"]], ids=["Railway's", "chosen"])
def test_a_second_plan_of_a_database_is_empty_with_backups_of_the_dashboard(
    render: Render, engine: Path, tmp_path: Path, region: str
) -> None:
    """No file can declare these, and none takes them away."""
    answers: Answers = {"database": "postgresql", "backup": "railway", "builder": "dockerfile"}
    project = copy(render(**answers), tmp_path)
    fill_in(project, REGION=region)
    environment = railway.live(answers)
    [mount] = environment["services"]["database-1"]["volumeMounts"].values()
    mount["backupSchedules"] = ["DAILY"]
    assert railway.plan(engine, declared(project, tmp_path), environment) == []


def test_constants_are_empty_until_somebody_knows_them(render: Render, tmp_path: Path) -> None:
    """A wrong region of the volume is worse than none, and a bucket without one is an error."""
    graph = declared(render(backup="litestream"), tmp_path)
    [volume], [bucket] = resources(graph, "volume"), resources(graph, "bucket")
    assert volume["config"] == {}
    assert bucket["config"]["region"] in {"sjc", "iad", "ams", "sin"}


def test_a_size_that_is_written_as_a_text_is_a_number(render: Render, tmp_path: Path) -> None:
    """The engine takes a text for another size: every plan would have a change of the volume."""
    project = copy(render(), tmp_path)
    fill_in(project, VOLUME_MB="5000")
    [volume] = resources(declared(project, tmp_path), "volume")
    assert volume["config"] == {"sizeMB": 5000}


@pytest.mark.parametrize("schedules", [[], ["DAILY", "MONTHLY"]], ids=["hobby", "pro"])
def test_backup_schedules_can_be_left_out(
    render: Render, tmp_path: Path, schedules: list[str]
) -> None:
    project = copy(render(backup="railway"), tmp_path)
    fill_in(project, BACKUP_SCHEDULES=schedules)
    [service] = resources(declared(project, tmp_path), "service")
    [attachment] = service["volumeAttachments"].values()
    assert attachment.get("backupSchedules", []) == schedules
    assert bool(schedules) == ("backupSchedules" in attachment)


@pytest.mark.parametrize(
    ("written", "declaration"),
    [
        ({"drainingSeconds": 45}, {"drainingSeconds": 45}),
        ({"drainingSeconds": 0}, {}),
        ({"overlapSeconds": 0, "sleepApplication": False, "cronSchedule": None}, {}),
        ({"overlapSeconds": 5, "sleepApplication": True}, ...),
        ({"restartPolicyType": "ALWAYS"}, ...),
        ({"restartPolicyMaxRetries": 3}, ...),
        ({"restartPolicyMaxRetries": 0}, ...),
        ({"numReplicas": 2}, ...),
        ({"healthcheckTimeout": 120}, ...),
        ({"preDeployCommand": "true"}, {"preDeployCommand": ["true"]}),
        ({"multiRegionConfig": {"sjc": {"numReplicas": 1}}}, ...),
    ],
    ids=str,
)
def test_what_somebody_writes_into_railway_json_is_what_is_applied(
    render: Render, tmp_path: Path, written: dict[str, Any], declaration: Any
) -> None:
    project = copy(render(volume_path="/mnt/vol-1"), tmp_path)
    file = project / "railway.json"
    config = load_json(file)
    config["deploy"] |= {"requiredMountPath": "/mnt/other", **written}
    # as an editor on Windows saves it
    file.write_text(json.dumps(config), encoding="utf-8-sig")

    [service] = resources(declared(project, tmp_path), "service")

    expected = written if declaration is ... else declaration
    always = {"startCommand", "healthcheckPath", "drainingSeconds", "requiredMountPath"}
    shown = {name: service["deploy"][name] for name in service["deploy"].keys() - always}
    shown |= {name: service["deploy"][name] for name in written.keys() & service["deploy"].keys()}
    assert exactly(shown) == exactly(expected)
    [attachment] = service["volumeAttachments"].values()
    assert attachment["mountPath"] == "/mnt/other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("", "Expecting value"),
        ("<<<<<<< before updating\n{}", "Expecting value"),
        ("[]", "has to be JSON with build, deploy and deploy.requiredMountPath"),
        ('{"build": {}}', "'deploy'"),
        ('{"build": null, "deploy": {}}', "has to be JSON with"),
        ('{"build": {}, "deploy": {"startCommand": "x"}}', "'requiredMountPath'"),
        ('{"build": {}, "deploy": {"requiredMountPath": ""}}', "requiredMountPath is empty"),
        ('{"build": {}, "deploy": {}, "environments": {}}', "nothing reads its environments"),
    ],
)
def test_a_railway_json_that_cannot_be_declared_is_one_line(
    render: Render, tmp_path: Path, text: str | None, said: str
) -> None:
    project = copy(render(), tmp_path)
    if text is None:
        (project / "railway.json").unlink()
    else:
        (project / "railway.json").write_text(text, encoding="utf-8")

    done = evaluate(project, tmp_path)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert str(project / "railway.json") in line
    assert said in line


def test_postgresql_needs_no_mount_path(render: Render, tmp_path: Path) -> None:
    project = copy(render(database="postgresql"), tmp_path)
    (project / "railway.json").write_text('{"build": {}}', encoding="utf-8")
    done = evaluate(project, tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "has to be JSON with build and deploy (RUNBOOK.md, Deploy on Railway): 'deploy'" in line


def test_no_new_project_is_warned_of_its_railway_json(installed: Callable[..., Path]) -> None:
    program = (
        "from datetime import date; from app.chassis.checks import deployment;"
        "print(deployment.railway_json(date(2027, 1, 1)).status)"
    )
    project = installed()
    python = project / ".venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", program], cwd=project, capture_output=True, encoding="utf-8"
    )
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("[google]", {"GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET"}),
        (
            "[microsoft]",
            {"MICROSOFT_CLIENT_ID", "MICROSOFT_CLIENT_SECRET", "MICROSOFT_ISSUER"},
        ),
    ],
)
def test_apply_keeps_what_the_sign_in_was_given(
    render: Render, tmp_path: Path, chosen: str, names: set[str]
) -> None:
    project = render(features="[oauth]", oauth_providers=chosen)
    [service] = resources(declared(project, tmp_path), "service")
    expected = names | {"ALLOWED_EMAILS", "BACKEND_URL", "SECRET_KEY"}
    assert service["variables"] == {name: {"type": "preserve"} for name in expected}


def test_railway_knows_every_key(render: Render) -> None:
    config = load_json(render() / "railway.json")
    assert config.keys() <= {"$schema", "build", "deploy", "environments"}
    assert config["build"].keys() <= BUILD_KEYS
    assert config["deploy"].keys() <= DEPLOY_KEYS


def test_the_command_needs_nothing_installed_but_uv(render: Render) -> None:
    """Debian's, Ubuntu's and Homebrew's Python refuse `pip install`."""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "hooks").iterdir(), ROOT / "README.md"]
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    for name, page in files(render()).items():
        texts[f"project/{name}"] = page.read_text(encoding="utf-8")
    # a command stands at the beginning of its line, in a block or indented
    found = [
        (name, line)
        for name, text in texts.items()
        for line in re.findall(r"^ *(?:\S+ )*railway config (?:plan|apply)\b", text, re.MULTILINE)
        if not re.search(r"[`.:,]", line)
    ]
    assert {name for name, _ in found} == {
        "next_steps.jinja",
        "project/.railway/railway.py",
        "project/RUNBOOK.md",
    }
    for name, line in found:
        assert line.strip().startswith("uv run --no-project --with railway-sdk railway "), name
    assert not [name for name, text in texts.items() if "pip install railway-sdk" in text]


def test_names(render: Render, tmp_path: Path) -> None:
    project = render(project_name="Rechnungen & Größe 2")
    graph = declared(project, tmp_path)
    [service] = resources(graph, "service")
    slug = constants(project / "app/chassis/answers.py")["SERVICE_SLUG"]
    assert graph["name"] == service["name"] == slug == "rechnungen-groesse-2"


def test_source_is_what_people_fill_in(render: Render, tmp_path: Path) -> None:
    project = copy(render(), tmp_path)
    [service] = resources(declared(project, tmp_path), "service")
    assert "source" not in service

    fill_in(project, REPOSITORY="owner/name")
    [service] = resources(declared(project, tmp_path), "service")
    assert service["source"] == {"type": "github", "repo": "owner/name", "branch": "main"}


def test_what_the_runbook_says_of_larger_repositories(render: Render, tmp_path: Path) -> None:
    project = copy(render(), tmp_path)
    page = (project / "RUNBOOK.md").read_text(encoding="utf-8")
    [source] = re.findall(r"`(github\(REPOSITORY, .*?\))`", page)
    [built] = re.findall(r'`"dockerfilePath": "(.*?)"`', page)
    [variable] = re.findall(r'`("SERVICE_DIRECTORY": .*?,)`', page)
    program, file = project / ".railway/railway.py", project / "railway.json"
    text = program.read_text(encoding="utf-8").replace("github(REPOSITORY)", source)
    anchor = "    # your own variables, one a line\n"
    text = text.replace(anchor, f"{anchor}    {variable}\n")
    program.write_text(text, encoding="utf-8")
    config = load_json(file)
    config["build"]["dockerfilePath"] = built
    file.write_text(json.dumps(config), encoding="utf-8")
    fill_in(project, REPOSITORY="owner/name")

    [service] = resources(declared(project, tmp_path), "service")

    assert service["source"]["rootDirectory"] == "services/billing-api"
    assert service["build"]["dockerfilePath"] == "services/billing-api/Dockerfile"
    directory = service["variables"]["SERVICE_DIRECTORY"]
    assert directory == {"type": "literal", "value": "services/billing-api"}


def test_sdk_reads_every_keyword(render: Render) -> None:
    known = set(re.findall(r'config\.get\(\s*"(\w+)"', inspect.getsource(railway_sdk)))
    assert {"build", "deploy", "volumeMounts"} <= known
    text = (render() / ".railway/railway.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    [call] = [call for call in calls if ast.unparse(call.func) == "service"]
    keywords = {keyword.arg for keyword in call.keywords}
    assert keywords
    assert keywords <= known


def test_one_file_owns_the_environment(render: Render) -> None:
    names = [path.name for path in (render() / ".railway").iterdir()]
    assert names == ["railway.py"]
    assert "PARTIAL" not in (render() / ".railway/railway.py").read_text(encoding="utf-8")
