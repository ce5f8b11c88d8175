"""docs/adopting.md, done as it stands there, on the repository in example/."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from support import ROOT, commit, files, git, load_toml, mostly_long, ruff, tool
from support.service import Service
from support.terminal import ENTER, Terminal

HERE = Path(__file__).parent
PAGE = (ROOT / "docs" / "adopting.md").read_text(encoding="utf-8")
SHARED = {".gitignore", "Procfile", "railway.json"}
KEPT = "README.md"
"""The example's file that is the user's in the template as well, which is never replaced."""

UVX = """\
#!/bin/sh
# uvx, with the Copier of the tests; there is nobody to answer its questions
command=$1 operation=$2
shift 2
case $operation in
    copy) exec {python} -m $command copy --defaults "$@" ;;
    *) exec {python} -m $command $operation "$@" ;;
esac
"""


def steps(heading: str) -> list[tuple[str, str]]:
    """The blocks below a heading: their language and what is in them."""
    (section,) = re.findall(rf"^## (?:\d\. )?{heading}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
    return re.findall(r"^```(sh|diff)\n(.*?)^```$", section, re.S | re.M)


def edit(project: Path, block: str) -> None:
    """Change files as a diff without line numbers says: each part has to fit in one place."""
    for change in re.split(r"^--- ", block, flags=re.M)[1:]:
        name, _, hunks = change.partition("\n")
        text = (project / name).read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n"):
            lines = [line or " " for line in hunk.splitlines()]
            before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
            after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
            assert text.count(before) == 1, f"{name} has {text.count(before)} times:\n{before}"
            text = text.replace(before, after)
        (project / name).write_text(text, encoding="utf-8")


class Reader:
    """Somebody who does what the page says."""

    def __init__(self, project: Path, template: Path, scripts: Path) -> None:
        self.project = project
        self.template = template
        scripts.mkdir()
        (scripts / "uvx").write_text(UVX.format(python=sys.executable), encoding="utf-8")
        (scripts / "uvx").chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{scripts}:{Path(tool('uv')).parent}:{os.environ['PATH']}",
            "UV": tool("uv"),
        }
        for name in ("VIRTUAL_ENV", "DATABASE_URL", "PORT"):
            self.environment.pop(name, None)

    def run(self, commands: str, *, code: int = 0, given: str | None = None) -> str:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands],
            cwd=self.project,
            env=self.environment,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def do(self, heading: str, *, only: Callable[[str], bool] = bool) -> str:
        """Every block of a section, but for commands that `only` leaves out."""
        output = ""
        for language, block in steps(heading):
            if language == "diff":
                edit(self.project, block)
                continue
            commands = "".join(line for line in block.splitlines(True) if only(line))
            address = "ADDRESS-OF-THIS-REPOSITORY"
            output += self.run(commands.replace(address, str(self.template)))
        return output


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The example as its owner has it: a repository with a history."""
    project = tmp_path / "shop"
    shutil.copytree(HERE / "example", project, ignore=shutil.ignore_patterns("__pycache__"))
    commit(project, "A shop")
    with (project / "README.md").open("a", encoding="utf-8") as file:
        file.write("\nAsk Ann.\n")
    commit(project, "Say whom to ask")
    return project


@pytest.fixture
def reader(shop: Path, template: Path, tmp_path: Path) -> Reader:
    return Reader(shop, template, tmp_path / "scripts")


def contents(project: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files(project).items()}


def both(output: str) -> list[str]:
    """The files that Copier has found in both, in its order."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    return re.findall(r"^ +conflict +(\S+)$", plain, re.M)


def test_the_pages_copy_replaces_nothing(reader: Reader) -> None:
    reader.do("Branch")
    # what the page warns of, and what it says of it
    readme = reader.project / "README.md"
    readme.write_text(f"{readme.read_text(encoding='utf-8')}Not committed.\n", encoding="utf-8")
    before = contents(reader.project)

    output = reader.do("Copy the template beside your files")

    after = contents(reader.project)
    assert set(both(output)) == {*SHARED, KEPT}
    assert {name: after[name] for name in before} == before
    assert {"app/main.py", "Dockerfile", "app/chassis/health.py"} <= after.keys()


@pytest.mark.parametrize("key", mostly_long(["n", ENTER]), ids=["no", "enter"])
def test_on_a_terminal_copier_asks_for_each_file(
    key: str, shop: Path, template: Path, run_copier: Callable[..., subprocess.CompletedProcess]
) -> None:
    """Without --skip. Enter means yes, and git brings back what it has replaced."""
    pretended = run_copier("copy", "--pretend", "--defaults", "--skip", "*", template, shop)
    names = both(pretended.stderr)
    assert set(names) == {*SHARED, KEPT}
    names.remove(KEPT)
    before = contents(shop)

    command = [sys.executable, "-m", "copier", "copy", "--defaults", str(template), "."]
    with Terminal(command, cwd=shop, env=os.environ) as terminal:
        for name in names:
            terminal.wait_for(f"Overwrite {name}? (Y/n)")
            terminal.press(key)
        assert terminal.wait_for_end() == 0

    replaced = set(git(shop, "diff", "--name-only").split())
    assert replaced == (SHARED if key == ENTER else set())
    git(shop, "restore", ".")
    after = contents(shop)
    assert {name: after[name] for name in before} == before


def test_without_a_terminal_copier_stops_before_it_replaces_anything(
    shop: Path, template: Path, run_copier: Callable[..., subprocess.CompletedProcess]
) -> None:
    before = contents(shop)

    done = run_copier("copy", "--defaults", template, shop)

    assert done.returncode == 1
    assert "Interactive session required: Consider using `--overwrite`" in done.stderr
    after = contents(shop)
    assert {name: after[name] for name in before} == before


def test_what_is_theirs_in_both_is_kept_unasked(
    shop: Path, template: Path, run_copier: Callable[..., subprocess.CompletedProcess]
) -> None:
    """Why the page has `app/` and `tests/conftest.py` renamed first."""
    kept = load_toml(ROOT / "ownership.toml")["user"]["kept"]
    for name in kept:
        (shop / name).parent.mkdir(parents=True, exist_ok=True)
        (shop / name).write_text("# mine\n", encoding="utf-8")

    assert run_copier("copy", "--defaults", "--overwrite", template, shop).returncode == 0

    assert {(shop / name).read_text(encoding="utf-8") for name in kept} == {"# mine\n"}
    renamed = [name for name in kept if name.startswith("app/") or name == "tests/conftest.py"]
    assert kept == [KEPT, *renamed]


def test_the_edits_fit_and_are_clean(reader: Reader) -> None:
    """The steps without uv: the long test does those too."""

    def only(line: str) -> bool:
        return "uv " not in line

    reader.do("Branch")
    reader.do("Copy the template beside your files")
    shown = reader.do("Look at what you both have")
    for name in SHARED:
        assert f"--- a/{name}" in shown
    reader.do("Move the code", only=only)

    project = reader.project
    ruff("check", "--fix", "--quiet", project / "app", project / "tests")
    ruff("format", "--check", project / "app", project / "tests")
    ignored = (project / ".gitignore").read_text(encoding="utf-8")
    assert ignored.endswith("# your own, below\n__pycache__/\nvenv/\n*.db\nexports/\n")
    assert (project / "README.md").read_text(encoding="utf-8").endswith("Ask Ann.\n")
    assert (project / "RUNBOOK.md").exists()
    assert "uvicorn.workers" not in (project / "railway.json").read_text(encoding="utf-8")
    assert "A shop" in git(project, "log", "--follow", "--format=%s", "--", "app/api/shop.py")


def test_the_page_says_whose_each_file_is() -> None:
    owners = load_toml(ROOT / "ownership.toml")
    rows = dict(re.findall(r"^\| (The template's|Yours|Both): .*? \| (.*) \|$", PAGE, re.M))
    template = [
        path for group in owners["template"] if "until" not in group for path in group["paths"]
    ]

    assert re.findall(r"`(.*?)`", rows["The template's"]) == template
    yours = re.findall(r"`(.*?)`", rows["Yours"])
    for name in (*owners["user"]["kept"], *owners["user"]["examples"]):
        assert name.startswith((*yours, "tests/", "app/__init__.py")), name
    assert set(re.findall(r"`(.*?)`", rows["Both"])) <= owners["shared"].keys()


ASKED = [
    ("GET", "/products", None),
    ("GET", "/products/tea-pot", None),
    ("GET", "/products/none", None),
    ("POST", "/products", {"name": "Cup", "cents": "many"}),
    ("POST", "/products/none/orders", {"quantity": 1}),
]
KEY = {"X-API-Key": "a-key-of-the-example-only"}


def answers(url: str) -> list[tuple[int, object]]:
    """What the service says to the same requests; an error's text only."""
    found: list[tuple[int, object]] = []
    with httpx.Client(base_url=url, headers=KEY) as client:
        for method, path, body in ASKED:
            answer = client.request(method, path, json=body)
            content = answer.json()
            if answer.is_error:
                content = content["detail"] if isinstance(content["detail"], str) else None
            found.append((answer.status_code, content))
    return found


@contextmanager
def old_service(reader: Reader, scripts: Path) -> Iterator[Service]:
    """The service as it was, with its own pins and plain uvicorn."""
    reader.run(
        f"uv venv --quiet {scripts} && "
        f"uv pip install --quiet --python {scripts} --requirement requirements.txt"
    )
    command = [str(scripts / "bin" / "uvicorn"), "main:app", "--port"]
    with Service(
        reader.project,
        scripts.parent / "old",
        ["bash", "-c", 'exec "$@" "$PORT"', "-", *command],
        DATABASE_URL="sqlite:///./app.db",
    ) as service:
        yield service.wait_until_healthy()


@pytest.mark.long
def test_the_example_is_adopted(
    reader: Reader, template: Path, tmp_path: Path, run_copier: Callable[..., object]
) -> None:
    project = reader.project
    releases = tmp_path / "releases"
    git(tmp_path, "clone", "--quiet", str(template), str(releases))
    reader.template = releases

    with old_service(reader, tmp_path / "venv") as old:
        pot = {"name": "Tea pot", "cents": 1950}
        assert old.client.post("/products", json=pot, headers=KEY).status_code == 201
        order = old.client.post("/products/tea-pot/orders", json={"quantity": 2})
        before = answers(old.url)
    old_data = (project / "app.db").read_bytes()
    old_env = (project / ".env").read_bytes()
    old_pins = (project / "requirements.txt").read_text(encoding="utf-8")

    for heading in (
        "Branch",
        "Copy the template beside your files",
        "Look at what you both have",
        "Move the code",
    ):
        reader.do(heading)

    # the mistakes at the page's end, with what it says one sees
    pyproject = (project / "pyproject.toml").read_bytes()
    assert "No solution found when resolving dependencies" in reader.run(
        "uv add -r -", code=1, given=old_pins
    )
    assert (project / "pyproject.toml").read_bytes() == pyproject
    early = reader.run("uv run python -m app migrate", code=1)
    assert "app.db has tables (orders, products) and no revision." in early
    assert (project / "app.db").read_bytes() == old_data

    assert "No new upgrade operations detected" in reader.do("Accept the tables, keep the data")

    reader.do("Check it, start it", only=lambda line: line.strip() != "uv run python -m app")
    assert git(project, "status", "--short") == ""
    with Service(project, tmp_path / "new", DATABASE_URL="") as new:
        new.wait_until_healthy()
        assert answers(new.url) == before
        second = new.client.post("/products/tea-pot/orders", json={"quantity": 1}).json()
        assert second["id"] == order.json()["id"] + 1
        assert new.client.get("/health").json()["checks"]["database"] == {"status": "ok"}
        (project / "data" / "app.db").rename(project / "data" / "moved.db")
        assert new.client.get("/health").status_code == 503
        (project / "data" / "moved.db").rename(project / "data" / "app.db")

    variables = {"RAILWAY_ENVIRONMENT_ID": "e", "RAILWAY_VOLUME_MOUNT_PATH": "/data"}
    variables |= {"SECRET_KEY": os.urandom(32).hex(), "DATABASE_URL": "sqlite:///./app.db"}
    message = "must name an absolute path on the volume in production"
    (command,) = re.findall(r"\| (uv run python -m app check --variables -)$", PAGE, re.M)
    found = reader.run(command, code=1, given=json.dumps(variables))
    assert "settings.DATABASE_URL" in found
    assert message in found
    reader.environment |= variables
    assert f"DATABASE_URL: {message}" in reader.run("uv run python -m app", code=78)
    for name in variables:
        del reader.environment[name]

    chassis = releases / "template" / "app" / "chassis" / "__init__.py"
    with chassis.open("a", encoding="utf-8") as file:
        file.write("# of the second release\n")
    commit(releases, "Second release", tag="0.2.0")
    (project / "README.md").write_text("Not committed.\n", encoding="utf-8")
    (update,) = [block for _, block in steps("From now on")]
    assert "Destination repository is dirty" in reader.run(update, code=1)
    git(project, "restore", ".")
    reader.run(update)
    changed = {line[3:] for line in git(project, "status", "--short").splitlines()}
    assert changed == {".copier-answers.yml", "app/chassis/__init__.py"}
    commit(project, "Update")

    reader.do("Going back")
    assert (project / "app.db").read_bytes() == old_data
    assert (project / ".env").read_bytes() == old_env
    with old_service(reader, tmp_path / "venv-again") as old:
        assert answers(old.url) == before
