"""railway.json and .railway/railway.py say the same, in words that Railway knows.

The Python file is evaluated with Railway's own SDK, which drops a misspelt keyword silently.
"""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import railway_sdk

from support import AXES, Answers, constants, identify, load_json, pairwise

Render = Callable[..., Path]

EVALUATE = """
import json, pathlib, runpy, sys
program = runpy.run_path(".railway/railway.py")
graph = program["main"]().to_graph()
pathlib.Path(sys.argv[1]).write_text(json.dumps(graph), encoding="utf-8")
"""

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

BUCKET_VARIABLES = {
    "LITESTREAM_BUCKET": "BUCKET",
    "LITESTREAM_ENDPOINT": "ENDPOINT",
    "LITESTREAM_REGION": "REGION",
    "LITESTREAM_ACCESS_KEY_ID": "ACCESS_KEY_ID",
    "LITESTREAM_SECRET_ACCESS_KEY": "SECRET_ACCESS_KEY",
}

COMBINATIONS = pairwise({name: AXES[name] for name in ("builder", "backup", "volume_path")})


def evaluate(project: Path, result: Path) -> dict[str, Any]:
    """The graph that the railway command would be given."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", EVALUATE, str(result)],
        cwd=project,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "the command reads stdout"
    return load_json(result)


def resources(graph: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [resource for resource in graph["resources"] if resource["type"] == kind]


def exactly(values: object) -> str:
    """Tells 1 from true and from 1.0, which == does not."""
    return json.dumps(values, sort_keys=True)


@dataclass(frozen=True)
class Project:
    answers: Answers
    config: dict[str, Any]
    graph: dict[str, Any]
    service: dict[str, Any]


@pytest.fixture(scope="module", params=COMBINATIONS, ids=identify)
def project(
    request: pytest.FixtureRequest, render: Render, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    path = render(**request.param)
    graph = evaluate(path, tmp_path_factory.mktemp("railway") / "graph.json")
    [service] = resources(graph, "service")
    return Project(request.param, load_json(path / "railway.json"), graph, service)


def test_both_files_say_the_same(project: Project) -> None:
    assert exactly(project.service["build"]) == exactly(project.config["build"])
    assert exactly(project.service["deploy"]) == exactly(project.config["deploy"])


def test_values(project: Project) -> None:
    expected = {
        "$schema": "https://railway.com/railway.schema.json",
        "build": {"builder": str(project.answers["builder"]).upper()},
        "deploy": {
            "startCommand": "python -m app",
            "healthcheckPath": "/health",
            "healthcheckTimeout": 300,
            "restartPolicyType": "ON_FAILURE",
            "restartPolicyMaxRetries": 10,
            "numReplicas": 1,
            "drainingSeconds": 30,
            "requiredMountPath": project.answers["volume_path"],
        },
    }
    assert exactly(project.config) == exactly(expected)


def test_volume_is_attached(project: Project) -> None:
    [volume] = resources(project.graph, "volume")
    [attachment] = project.service["volumeAttachments"].values()
    assert attachment["volume"] == volume["address"]
    assert attachment["mountPath"] == project.answers["volume_path"]
    assert not project.service["volumeMounts"], "mounts of what is no volume"


def test_variables(project: Project) -> None:
    expected: dict[str, dict[str, str]] = {"SECRET_KEY": {"type": "preserve"}}
    buckets = resources(project.graph, "bucket")
    if project.answers["backup"] == "litestream":
        [bucket] = buckets
        for name, output in BUCKET_VARIABLES.items():
            expected[name] = {
                "type": "reference",
                "resource": bucket["address"],
                "output": output,
            }
    else:
        assert buckets == []
    assert project.service["variables"] == expected


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
    [service] = resources(evaluate(project, tmp_path / "graph.json"), "service")
    expected = names | {"ALLOWED_EMAILS", "BACKEND_URL", "SECRET_KEY"}
    assert service["variables"] == {name: {"type": "preserve"} for name in expected}


def test_railway_knows_every_key(render: Render) -> None:
    config = load_json(render() / "railway.json")
    assert config.keys() <= {"$schema", "build", "deploy", "environments"}
    assert config["build"].keys() <= BUILD_KEYS
    assert config["deploy"].keys() <= DEPLOY_KEYS


def test_names(render: Render, tmp_path: Path) -> None:
    project = render(project_name="Rechnungen & Größe 2")
    graph = evaluate(project, tmp_path / "graph.json")
    [service] = resources(graph, "service")
    slug = constants(project / "app/chassis/answers.py")["SERVICE_SLUG"]
    assert graph["name"] == service["name"] == slug == "rechnungen-groesse-2"


def test_source_is_what_people_fill_in(render: Render, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(render(), project)
    [service] = resources(evaluate(project, tmp_path / "graph.json"), "service")
    assert "source" not in service

    program = project / ".railway/railway.py"
    text = program.read_text(encoding="utf-8")
    filled_in = text.replace('REPOSITORY = ""', 'REPOSITORY = "owner/name"')
    assert filled_in != text
    program.write_text(filled_in, encoding="utf-8")
    [service] = resources(evaluate(project, tmp_path / "graph.json"), "service")
    assert service["source"] == {"type": "github", "repo": "owner/name", "branch": "main"}


def test_sdk_reads_every_keyword(render: Render) -> None:
    known = set(re.findall(r'config\.get\(\s*"(\w+)"', inspect.getsource(railway_sdk)))
    assert {"healthcheckTimeout", "replicas", "volumeMounts"} <= known
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
