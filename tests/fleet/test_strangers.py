"""A service's repository is a stranger's: none of it runs, and it stays within its own row."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Run

from support import commit, git

ANSWERS = ".copier-answers.yml"
DRIVER = """
[core]
	fsmonitor = "{run}"
	hooksPath = hooks
	sshCommand = "{run}"
	gitProxy = "{run}"
	editor = "{run}"
	pager = "{run}"
	askPass = "{run}"
	alternateRefsCommand = "{run}"
[credential]
	helper = "!{run}"
[diff]
	external = "{run}"
[diff "x"]
	textconv = "{run}; cat"
	command = "{run}"
[filter "x"]
	clean = "{run}; cat"
	smudge = "{run}; cat"
	required = true
[merge "x"]
	driver = "{run}"
[gpg]
	program = "{run}"
[commit]
	gpgSign = true
[gc]
	auto = 1
[uploadpack]
	packObjectsHook = "{run}"
[protocol]
	allow = always
[protocol "ext"]
	allow = always
[url "ext::{run} "]
	insteadOf = /
	insteadOf = https://
[trailer "x"]
	command = "{run}"
[interactive]
	diffFilter = "{run}"
[sequence]
	editor = "{run}"
"""
PROMISOR = """\
[core]
	repositoryformatversion = 1
	bare = true
[extensions]
	partialClone = origin
[remote "origin"]
	url = /none
	promisor = true
	uploadpack = "{run}; false"
"""
HOOKS = [
    "applypatch-msg", "commit-msg", "fsmonitor-watchman", "post-checkout", "post-commit",
    "post-index-change", "post-merge", "post-rewrite", "post-update", "pre-auto-gc", "pre-commit",
    "pre-push", "pre-receive", "prepare-commit-msg", "reference-transaction", "update",
]  # fmt: skip


def recorded(service: Path, **values: str) -> None:
    """Put another address or commit into its answers, committed."""
    lines = (service / ANSWERS).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.split(":")[0] not in values]
    kept += [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    (service / ANSWERS).write_text("\n".join(kept) + "\n", encoding="utf-8")
    commit(service, "Answers")


def bare_template(service: Path, run: str) -> None:
    """A repository among the committed files, which fetches what it lacks with a command."""
    for name, text in {
        "HEAD": "ref: refs/heads/main\n",
        "objects/info/keep": "",
        "refs/tags/1.0.0": "1" * 40 + "\n",
        "config": PROMISOR.format(run=run),
    }.items():
        (service / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (service / "t" / name).write_text(text, encoding="utf-8")
    recorded(service, _src_path="./t")


def filters_in_a_directory(service: Path, run: str) -> Path:
    """A service in a subdirectory, which is a repository too, as git looks for one."""
    inner = service / "inner"
    inner.mkdir()
    for file in [file for file in service.iterdir() if file.name not in (".git", "inner")]:
        file.rename(inner / file.name)
    (inner / "objects").mkdir()
    (inner / "refs").mkdir()
    settings = "[core]\n\tbare = false\n\tworktree = .\n" + DRIVER.format(run=run)
    for name, text in {
        "HEAD": "ref: refs/heads/main\n",
        "objects/keep": "",
        "refs/keep": "",
        "config": settings,
        ".gitattributes": "* filter=x diff=x merge=x\n",
    }.items():
        (inner / name).write_text(text, encoding="utf-8")
    (inner / "index").write_bytes((service / ".git" / "index").read_bytes())
    (service / ".gitattributes").write_text("* filter=x diff=x merge=x\n", encoding="utf-8")
    git(service, "add", "--all", "--force")
    git(service, "commit", "--quiet", "--message", "Moved")
    return inner


def settings(service: Path, run: str) -> None:
    """The settings of the repository itself, as a build or an archive leaves them."""
    (service / ".gitattributes").write_text("* filter=x diff=x merge=x\n", encoding="utf-8")
    commit(service, "Attributes")
    with (service / ".git" / "config").open("a", encoding="utf-8") as file:
        file.write(DRIVER.format(run=run))
    hooks = service / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in HOOKS:
        (hooks / name).write_text(f"#!/bin/sh\n{run}\n", encoding="utf-8")
        (hooks / name).chmod(0o755)
    os.utime(service / "README.md", (1, 1))


def a_promise(service: Path, run: str) -> None:
    """An object is missing, and the repository says from where it comes."""
    [blob] = git(service, "rev-parse", "HEAD:README.md").split()
    (service / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with (service / ".git" / "config").open("a", encoding="utf-8") as file:
        file.write(PROMISOR.format(run=run).replace("bare = true", "bare = false"))


def include(service: Path, run: str) -> None:
    (service / "settings").write_text(DRIVER.format(run=run), encoding="utf-8")
    commit(service, "Settings")
    git(service, "config", "include.path", "../settings")


def a_submodule(service: Path, run: str) -> None:
    """A repository within it that git would ask for its state."""
    inner = service / "sub"
    inner.mkdir()
    (inner / "file").write_text("x\n", encoding="utf-8")
    commit(inner, "Inner")
    (service / ".gitmodules").write_text('[submodule "sub"]\n\tpath = sub\n\turl = ./sub\n')
    commit(service, "Outer")
    with (inner / ".git" / "config").open("a", encoding="utf-8") as file:
        file.write(DRIVER.format(run=run))


def address(text: str) -> Callable[[Path, str], None]:
    def write(service: Path, run: str) -> None:
        recorded(service, _src_path=text.format(run=run, service=service))

    write.__name__ = "address " + text
    return write


VECTORS: list[Callable[[Path, str], Path | None]] = [
    bare_template,
    filters_in_a_directory,
    settings,
    a_promise,
    include,
    a_submodule,
    address("ext::{run}"),
    address("git+ext::{run}"),
    address("ext::sh -c {run}://x"),
    address("file://{service}/t"),
    address("{service}/.git"),
    address("."),
    address("--upload-pack={run}"),
    address("-oProxyCommand={run}@host:path"),
    address("ssh://-oProxyCommand={run}/x"),
    address("fd::17"),
]


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[str]:
    """A command that leaves a file, which is not there in the end."""
    program, seen = tmp_path / "canary", tmp_path / "seen"
    program.write_text(f"#!/bin/sh\nps -o args= $PPID >> {seen}\n", encoding="utf-8")
    program.chmod(0o755)
    yield str(program)
    assert not seen.exists(), seen.read_text()


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert "Traceback" not in done.stderr, done.stderr
    return {item["name"]: item for item in json.loads(done.stdout)["services"]}


def test_the_canary_sings(make_service: Callable[..., Path], canary: str, tmp_path: Path) -> None:
    """The settings do run it when git is asked in the plain way."""
    service = make_service("service")
    settings(service, canary)
    subprocess.run(["git", "status"], cwd=service, capture_output=True)
    assert (tmp_path / "seen").exists()
    (tmp_path / "seen").unlink()


def test_nothing_that_a_service_holds_is_run(
    make_service: Callable[..., Path], small: Path, canary: str, run_fleet: Run, tmp_path: Path
) -> None:
    paths, names = [], []
    for number, vector in enumerate(VECTORS):
        service = make_service(f"service-{number}")
        paths.append(vector(service, canary) or service)
        names.append(vector.__name__)
    good = make_service("good")
    rules = tmp_path / "rules"
    rules.write_text("version >= 0.1", encoding="utf-8")
    everything = [*paths, good]

    for where in (small, tmp_path):
        listed = rows(run_fleet("inventory", "--json", *everything, cwd=where))
        assert listed["good"]["problem"] is None
        run_fleet("policy", rules, *everything, "--json", cwd=where)
    report = run_fleet("report", tmp_path / "r.html", *everything, "--to", "0.2.0", cwd=small)
    assert report.returncode == 0, report.stderr
    run_fleet("drift", *everything, "--json", cwd=small)
    forecast = rows(run_fleet("forecast", "--to", "0.2.0", "--json", *everything, cwd=small))
    assert forecast["good"]["verdict"] == "clean"
    done = rows(run_fleet("update", "--no-test", "--json", *everything, cwd=small))
    assert done["good"]["outcome"] == "updated"
    outcomes = dict(zip(names, (done[path.name] for path in paths), strict=True))
    for name in ("settings", "include", "a_submodule"):
        assert outcomes[name]["outcome"] == "updated", (name, outcomes[name])
    for path, row in zip(paths, outcomes.values(), strict=True):
        assert row["outcome"] == "updated" or row["problem"], path
