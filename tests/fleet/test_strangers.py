"""A service's repository is a stranger's: none of it runs, and it stays within its own row."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Run

from support import commit, git, mostly_long

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


@pytest.mark.long
def test_the_canary_sings(make_service: Callable[..., Path], canary: str, tmp_path: Path) -> None:
    """The settings do run it when git is asked in the plain way."""
    service = make_service("service")
    settings(service, canary)
    subprocess.run(["git", "status"], cwd=service, capture_output=True)
    assert (tmp_path / "seen").exists()
    (tmp_path / "seen").unlink()


@pytest.mark.long
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


NOTHING_READ = {
    "link": "is a symbolic link: not followed",
    "device": "is a symbolic link: not followed",
    "pipe": "is no regular file",
    "directory": "is no regular file",
    "large": "is larger than 256 kB",
    "aliases": "holds more than 10000 values",
    "merges": "holds more than 10000 values",
    "deep": "holds what is no answer",
    "nested": "holds what is no answer",
    "dashes": "holds what is no answer",
    "keys": "holds what is no answer",
    "date": "holds what is no answer",
    "digits": "holds what is no answer",
    "integer": "holds what is no answer",
    "octal": "holds what is no answer",
    "tag": "is no valid YAML",
}


def hostile_answers(service: Path, name: str, secret: Path) -> None:
    """Put something in the place of the answers file."""
    file = service / ANSWERS
    file.unlink()
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    texts = {
        "large": "a: " + "x" * 300_000,
        "aliases": bomb,
        "merges": merges,
        "deep": "a: " + "[" * 400 + "]" * 400,
        "nested": "a: " + "[" * 100_000,
        "dashes": "a:\n" + "- " * 100_000,
        "keys": "? " * 100_000,
        "date": "_commit: 2026-13-45\n",
        "digits": f"workers: {'9' * 5000}\n",
        "integer": "workers: 0x" + "f" * 5000,
        "octal": "workers: !!int ''\n",
        "tag": "a: !!python/object/apply:os.system ['true']\n",
    }
    match name:
        case "link":
            file.symlink_to(secret)
        case "device":
            file.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case _:
            file.write_text(texts[name], encoding="utf-8")


def test_answers_are_a_small_file_of_the_service(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token: hunter2\n_src_path: gh:acme/trackbed\n", encoding="utf-8")
    for name in NOTHING_READ:
        hostile_answers(fabricate(name), name, secret)
    services = fabricate("good").parent
    (services / "elsewhere").symlink_to(tmp_path)

    done = run_fleet("inventory", "--json", services, cwd=owner)

    found = rows(done)
    for name, reason in NOTHING_READ.items():
        assert reason in found[name]["problem"], name
    assert found["good"]["behind"] == 1
    assert "hunter2" not in done.stdout


def test_committed_answers_are_too(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token: hunter2\n", encoding="utf-8")
    repos = tmp_path / "repos.toml"
    names = ["link", "large", "aliases", "date"]
    for name in names:
        service = make_service(name)
        git(service, "switch", "--quiet", "--create", "other")
        hostile_answers(service, name, secret)
        commit(service, "Hostile")
        git(service, "switch", "--quiet", "main")
    repos.write_text(
        "".join(f'[[service]]\npath = "services/{name}"\nbranch = "other"\n' for name in names)
    )

    found = rows(run_fleet("inventory", "--json", "--repos", repos, cwd=small))

    for name in names:
        assert NOTHING_READ[name] in found[name]["problem"]


def test_a_directory_of_a_monorepo_that_leads_out(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    private = make_service("private")
    mono = tmp_path / "mono"
    (mono / "services").mkdir(parents=True)
    (mono / "services" / "evil").symlink_to(private)
    (mono / "services" / "up").symlink_to(private / "app")
    commit(mono, "Links")
    paths = [mono / "services", mono / "services" / "evil", mono / "services" / "up"]

    for command in ("inventory", "drift", "forecast"):
        found = rows(run_fleet(command, "--json", *paths, cwd=small))
        for name in ("evil", "up"):
            assert "is a symbolic link in a repository: not followed" in found[name]["problem"]


@pytest.mark.parametrize(
    "link",
    mostly_long(["app/chassis", "app", "app/main.py", "notes"]),
)
def test_a_link_that_leads_out_is_not_written_through(
    link: str, make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (outside / "chassis").mkdir(parents=True)
    (outside / "main.py").write_text("app = None\n", encoding="utf-8")
    service = make_service("service")
    git(service, "rm", "--quiet", "-r", "--ignore-unmatch", link)
    target = outside / "main.py" if link.endswith(".py") else outside
    (service / link).parent.mkdir(parents=True, exist_ok=True)
    (service / link).symlink_to(target)
    commit(service, "A link")

    [row] = rows(run_fleet("update", "--no-test", "--json", service, cwd=small)).values()
    run_fleet("drift", "--json", service, cwd=small)

    assert row["problem"] == f"a symbolic link leads out of the repository: {link}"
    assert sorted(file.name for file in outside.rglob("*")) == ["chassis", "main.py"]
    assert (outside / "main.py").read_text(encoding="utf-8") == "app = None\n"


ODD = [
    "https://git.example/x\0y",
    "https://[",
    "https://git.example:99999/x",
    "~nobody-of-that-name/x",
    "http://git.example/x",
    "https://git.example/../x",
    "https://git.example/%2e%2e/x",
    "git@host.invalid:x y",
    "gh:../x",
    "\0",
    "x" * 5000,
    "/x\ud800",
    "https://git.example/\ud800",
    ["a", "list"],
    {"a": "table"},
    12,
    "/dev/zero",
    "/proc/self/root",
]


def test_an_odd_address_or_commit_is_a_reason(
    fabricate: Callable[..., Path], owner: Path, run_fleet: Run
) -> None:
    for number, text in enumerate(ODD):
        fabricate(f"address-{number}", source=json.dumps(text))
    commits: list[object] = [["a"], {"a": 1}, "1.0.0\ud800", True, "v" + "1" * 99, "1!" + "9" * 60]
    commits += ["9" * 5000, "1.0-" + "9" * 5000 + "-gabc1234", "x" * 5000, "9.9.9", "HEAD"]
    for number, text in enumerate(commits):
        fabricate(f"commit-{number}", version=json.dumps(text))
    services = fabricate("good").parent

    found = rows(run_fleet("inventory", "--json", services, cwd=owner))

    assert found["good"]["behind"] == 1
    for name, row in found.items():
        if name != "good":
            assert row["unknown"] or row["problem"], row
            assert "unexpected" not in f"{row['unknown']} {row['problem']}"
            assert (row["version"], row["behind"]) == (None, None) or "address" in name


def test_a_templates_odd_tags_are_left_out(
    fabricate: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    template = tmp_path / "template"
    git(tmp_path, "clone", "--quiet", str(small), str(template))
    blob = git(template, "hash-object", "-w", "copier.yml").strip()
    git(template, "tag", "7.0.0", blob)
    git(template, "tag", "9" * 200, "HEAD")
    message = "a\N{LINE SEPARATOR}b\vc"
    git(template, "commit", "--quiet", "--allow-empty", "--message", message)
    git(template, "tag", "--annotate", "--message", message, "0.5.0")
    service = fabricate("service", source="https://git.example/t", version="0.1.0")

    done = run_fleet(
        "inventory", "--json", service,
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"url.{template}.insteadOf",
        GIT_CONFIG_VALUE_0="https://git.example/t",
    )  # fmt: skip

    [row] = rows(done).values()
    assert (row["version"], row["behind"], row["newest"]) == ("0.1.0", 2, "0.5.0")


LOOP = """\
_subdirectory: template
x:
  type: str
  default: "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
"""
FULL = """\
_subdirectory: template
x:
  type: str
  default: "{{ ('x' * 999999999) ~ ('y' * 999999999) ~ ('z' * 999999999) }}"
"""


@pytest.mark.long
def test_a_template_without_end_costs_its_own_row_only(
    make_service: Callable[..., Path], run_fleet: Run, tmp_path: Path, small: Path
) -> None:
    stand_ins = {}
    for number, (name, text) in enumerate({"loop": LOOP, "full": FULL, "good": ""}.items()):
        template = tmp_path / f"{name}-template"
        git(tmp_path, "clone", "--quiet", str(small), str(template))
        (template / "NOTES").write_text(name, encoding="utf-8")  # something to commit
        if text:
            (template / "copier.yml").write_text(text, encoding="utf-8")
        commit(template, "Another", tag="0.3.0")
        recorded(make_service(name), _src_path=f"https://git.example/{name}.git")
        stand_ins |= {
            f"GIT_CONFIG_KEY_{number}": f"url.{template}.insteadOf",
            f"GIT_CONFIG_VALUE_{number}": f"https://git.example/{name}.git",
        }
    services = tmp_path / "services"

    done = run_fleet("forecast", "--json", services, GIT_CONFIG_COUNT="3", **stand_ins)

    found = rows(done)
    assert found["loop"]["problem"] in (
        "it took more than 60 s of processor time",
        "it took too long, and was ended",
    )
    assert found["full"]["problem"] == "Copier: it takes more memory than a service may"
    assert found["good"]["problem"] is None
