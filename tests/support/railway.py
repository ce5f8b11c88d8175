"""Railway's side of .railway/railway.py: what the CLI makes of it, and what a second plan says.

Nothing here asks Railway. The file is evaluated with Railway's own SDK, and compared by the engine
of Railway's npm package, which is what `railway config plan` compares with.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import Answers, load_json

CONSTANTS: dict[str, str | int] = {
    "REGION": "europe-west4-drams3a",
    "VOLUME_MB": 5000,
    "BUCKET_REGION": "ams",
}
"""What people fill in, as the plan after the first `apply` shows it."""

EVALUATE = """
import importlib.util, json, pathlib, sys
spec = importlib.util.spec_from_file_location("railway_iac_user", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
graph = module.main().to_graph()
pathlib.Path(sys.argv[2]).write_text(json.dumps(graph), encoding="utf-8")
"""

ENGINE = """
import { readFileSync } from 'fs';
const iac = await import(process.argv[2]);
const { graph, live, names } = JSON.parse(readFileSync(0, 'utf8'));
const current = iac.environmentConfigToGraph(live, names);
const desired = iac.projectDefinitionToGraph(graph);
const { changes, diagnostics } = iac.diffGraphs({ current, desired });
console.log(JSON.stringify([
  ...changes.map((one) => [one.severity, one.summary, ...(one.details ?? [])].join(' | ')),
  ...diagnostics.map((one) => `${one.severity} | ${one.message}`),
]));
"""


def evaluate(project: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run .railway/railway.py as the CLI does: by its absolute path, from somewhere else."""
    program = (project / ".railway" / "railway.py").resolve()
    return subprocess.run(
        [sys.executable, "-B", "-c", EVALUATE, str(program), str(directory / "graph.json")],
        cwd=directory,
        capture_output=True,
        encoding="utf-8",
    )


def declared(project: Path, directory: Path) -> dict[str, Any]:
    """Return the graph that the CLI gets from .railway/railway.py."""
    done = evaluate(project, directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "the command reads stdout"
    return load_json(directory / "graph.json")


def fill_in(project: Path, **values: str | int | list[str]) -> None:
    """Give constants of .railway/railway.py their values."""
    program = project / ".railway" / "railway.py"
    text = program.read_text(encoding="utf-8")
    for name, value in values.items():
        text, found = re.subn(
            rf"^({name}(?:: .*)?) = .*$", rf"\g<1> = {json.dumps(value)}", text, flags=re.MULTILINE
        )
        assert found == 1, f"{found} lines assign {name}"
    program.write_text(text, encoding="utf-8")


def variables(answers: Answers) -> set[str]:
    """Name the variables that people set for these answers before they deploy."""
    features, providers = answers.get("features", []), answers.get("oauth_providers", ["google"])
    assert isinstance(features, list)
    assert isinstance(providers, list)
    names = {"SECRET_KEY"}
    if "conversations" in features and answers.get("ai_provider") == "anthropic":
        names |= {"ANTHROPIC_API_KEY"}
    if "oauth" in features:
        names |= {"ALLOWED_EMAILS", "BACKEND_URL"}
        names |= {f"{one.upper()}_CLIENT_{part}" for one in providers for part in ("ID", "SECRET")}
        names |= {"MICROSOFT_ISSUER"} & {f"{one.upper()}_ISSUER" for one in providers}
    return names


BUCKET_VARIABLES = {
    "LITESTREAM_BUCKET": "BUCKET",
    "LITESTREAM_ENDPOINT": "ENDPOINT",
    "LITESTREAM_REGION": "REGION",
    "LITESTREAM_ACCESS_KEY_ID": "ACCESS_KEY_ID",
    "LITESTREAM_SECRET_ACCESS_KEY": "SECRET_ACCESS_KEY",
}


DATABASE: dict[str, Any] = {
    "source": {"image": "ghcr.io/railwayapp-templates/postgres-ssl:18"},
    "deploy": {
        "requiredMountPath": "/var/lib/postgresql/data",
        "multiRegionConfig": {CONSTANTS["REGION"]: {"numReplicas": 1}},
    },
    "variables": {"PGDATA": {"value": "/var/lib/postgresql/data/pgdata"}},
    "networking": {"tcpProxies": {"5432": {}}},
}
"""Service of PostgreSQL, as Railway makes it."""


def live(answers: Answers) -> dict[str, Any]:
    """Return the environment that Railway holds for these answers after the first `apply`.

    A value that equals the platform's default is not stored, but for a time limit beside a
    database. A volume has a region, a size and alerts, a service the region of its one replica.
    """
    values = {name: {"value": ""} for name in variables(answers)}
    service: dict[str, Any] = {
        "build": {"builder": str(answers["builder"]).upper()},
        "deploy": {"startCommand": "python -m app", "healthcheckPath": "/health"},
        "networking": {"serviceDomains": {"billing.up.railway.app": {"port": 8080}}},
        "variables": values,
    }
    volume: dict[str, Any] = {"region": CONSTANTS["REGION"], "sizeMB": CONSTANTS["VOLUME_MB"]}
    environment: dict[str, Any] = {
        "services": {"service-1": service},
        "volumes": {"volume-1": volume},
    }
    deploy = service["deploy"]
    if answers.get("database") == "postgresql":
        values["DATABASE_URL"] = {"value": "${{postgres.DATABASE_URL}}"}
        replicas = answers.get("replicas", 2)
        deploy |= {"preDeployCommand": ["python -m app migrate"]}
        deploy |= {"drainingSeconds": 40, "overlapSeconds": 20, "healthcheckTimeout": 300}
        deploy["multiRegionConfig"] = {CONSTANTS["REGION"]: {"numReplicas": replicas}}
        environment["services"]["database-1"] = DATABASE | {
            "volumeMounts": {"volume-1": {"mountPath": DATABASE["deploy"]["requiredMountPath"]}}
        }
        return environment
    mount: dict[str, Any] = {"mountPath": answers.get("volume_path", "/data")}
    if answers["backup"] == "railway":
        mount["backupSchedules"] = ["DAILY"]
    deploy |= {"drainingSeconds": 30, "requiredMountPath": mount["mountPath"]}
    deploy["multiRegionConfig"] = {CONSTANTS["REGION"]: {"numReplicas": 1}}
    service["volumeMounts"] = {"volume-1": mount}
    volume |= {
        "alerts": {"usage": {"80": {}, "95": {}, "100": {}}},
        "allowOnlineResize": True,
    }
    if answers["backup"] == "litestream":
        environment["buckets"] = {"bucket-1": {"region": CONSTANTS["BUCKET_REGION"]}}
        for name, output in BUCKET_VARIABLES.items():
            values[name] = {"value": f"${{{{copies.{output}}}}}"}
    return environment


def install_engine(directory: Path) -> Path:
    """Install Railway's engine below a directory, and return the module."""
    options = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts")
    command = ["npm", "install", *options, "--prefix", str(directory), "railway@3.10.0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    (directory / "plan.mjs").write_text(ENGINE, encoding="utf-8")
    return directory / "node_modules" / "railway" / "dist" / "iac" / "index.js"


def plan(engine: Path, graph: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    """Return what `railway config plan` says of a graph and of what Railway holds."""
    names = {
        "projectName": graph["name"],
        "serviceNamesById": {"service-1": "billing-api", "database-1": "postgres"},
        "volumeNamesById": {
            "volume-1": "postgres-volume" if "database-1" in environment["services"] else "data"
        },
        "bucketNamesById": {"bucket-1": "copies"},
    }
    done = subprocess.run(
        ["node", str(engine.parents[4] / "plan.mjs"), str(engine)],
        input=json.dumps({"graph": graph, "live": environment, "names": names}),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(done.stdout)
    return said
