"""The load that docs/load.md shows, as it stands there, one request of each."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import ROOT, tool
from support.service import free_port

OHA = """#!/usr/bin/env python3
import argparse, json, sys, urllib.request
parser = argparse.ArgumentParser(allow_abbrev=False)
ends = parser.add_mutually_exclusive_group(required=True)  # as in oha
ends.add_argument("-n", type=int)
ends.add_argument("-z")
parser.add_argument("-c", type=int)
parser.add_argument("-q", type=float)
parser.add_argument("-m", default="GET")
parser.add_argument("-T")
parser.add_argument("-d")
parser.add_argument("-H", action="append", default=[])
parser.add_argument("-w", action="store_true")
parser.add_argument("--latency-correction", action="store_true")
parser.add_argument("--no-tui", action="store_true")
parser.add_argument("url")
asked = parser.parse_args()
headers = {"Content-Type": asked.T} if asked.T else {}
headers |= dict(header.split(": ", 1) for header in asked.H)
body = asked.d.encode() if asked.d else None
request = urllib.request.Request(asked.url, body, headers, method=asked.m)
with urllib.request.urlopen(request, timeout=60) as answer:
    print(json.dumps(["oha", asked.m, answer.status, answer.read().decode()]))
"""
"""Its options that the page uses, with one request for all of them: oha is not on PyPI."""


def commands(answers: dict[str, str]) -> str:
    """The blocks that the page has for these answers, in its order."""
    page = (ROOT / "docs" / "load.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert "https://THE-DOMAIN" in sections["On Railway"]
    blocks = re.findall(r"```sh\n(.*?)```", sections["On your own machine"], re.DOTALL)
    production, development, provider, start, sign_in, load, end = blocks
    if answers:
        kept, replaced = production.splitlines(keepends=True)
        assert replaced.startswith("export ENVIRONMENT=production ")
        production = kept + development
    if "features" not in answers:
        provider = sign_in = ""
    return production + provider + start + sign_in + load + end


@pytest.mark.long
@pytest.mark.parametrize(
    "answers",
    [
        {},
        pytest.param(
            {"features": "[conversations, oauth]", "ai_provider": "anthropic"},
            marks=pytest.mark.long,
        ),
        pytest.param({"backup": "litestream"}, marks=pytest.mark.long),
    ],
    ids=["default", "features", "litestream"],
)
def test_the_pages_load_is_answered(
    answers: dict[str, str], installed: Callable[..., Path], tmp_path: Path
) -> None:
    project = installed(**answers)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "oha").write_text(OHA)
    (programs / "oha").chmod(0o755)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"VIRTUAL_ENV", "DATABASE_URL", "PORT"}
    }
    environment["PATH"] = f"{programs}:{Path(tool('uv')).parent}:{os.environ['PATH']}"
    script = commands(answers).replace("/tmp/load", str(tmp_path / "load"))
    script = script.replace("8765", str(free_port())).replace(
        "localhost:9400", f"localhost:{(provider := free_port())}"
    )
    script = script.replace("oidc-provider-mock", f"oidc-provider-mock --port {provider}")

    done = subprocess.run(
        [
            "bash",
            "-c",
            f"set -e\n{script}\nenv | grep -E '^(DATABASE_URL|PORT|GOOGLE_.*)=' || true",
        ],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )

    assert done.returncode == 0, done.stdout
    # curl and the first of them share a line
    answered = [json.loads(line) for line in re.findall(r'\["oha".*\]$', done.stdout, re.MULTILINE)]
    assert [(method, status) for _, method, status, _ in answered] == [
        ("GET", 200),
        ("POST", 201),
        ("GET", 200),
        ("GET", 200),
    ]
    assert [note["text"] for note in json.loads(answered[2][3])] == ["load"]
    assert not (tmp_path / "load").exists()
    assert not re.search("^(DATABASE_URL|PORT|GOOGLE_.*)=", done.stdout, re.MULTILINE)
