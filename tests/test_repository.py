"""What the repository says of itself is so."""

import ast
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ASKED, ROOT, applies, git, load_toml, tool

README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBERS = {9: "nine", 10: "ten", 11: "eleven", 12: "twelve"}
PAGES = [ROOT / name for name in git(ROOT, "ls-files", "*.md").splitlines()]


def commands() -> list[str]:
    """The first two commands of the README."""
    first, second, *_ = re.findall(r"```sh\n(.+?)\n```", README, re.DOTALL)
    return [first, second]


def test_ci_starts_with_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    run = [line for line in lines[1:] if line and not line.startswith(("#", "set ", "cd "))]

    assert run[0] == commands()[1]
    assert "pytest -m long" in run[1]
    assert script.stat().st_mode & stat.S_IXUSR


def test_the_first_command_renders_and_serves() -> None:
    assert "copier copy --defaults" in commands()[0]
    assert commands()[0].endswith("python -m app")
    for command in commands():
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0


def test_the_first_command_leaves_the_next_ones_usable(tmp_path: Path) -> None:
    """Somebody who has Python and git only has uv afterwards, in the same terminal."""
    clone = tmp_path / "a clone"
    clone.mkdir()
    stand_in = f"{clone}/.venv/bin"
    # what takes minutes does nothing here, and leaves what it would have installed
    script = f"""
        python3() {{ mkdir -p .venv/bin; for n in pip copier uv uvx; do
            printf '#!/bin/sh\\n' > .venv/bin/$n; chmod +x .venv/bin/$n; done; }}
        {commands()[0]}
        command -v uv uvx copier
    """
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout.split("\n")[:-1] == [f"{stand_in}/{n}" for n in ("uv", "uvx", "copier")]


def test_the_readme_lists_the_questions_in_their_order() -> None:
    assert re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE) == list(ASKED)


def test_the_readme_counts_the_questions() -> None:
    assert f"asks {NUMBERS[sum(applies(name, {}) for name in ASKED)]} questions" in README


def test_requirements_hold_every_tool_and_no_address() -> None:
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    groups = load_toml(ROOT / "pyproject.toml")["dependency-groups"]
    names = [re.split(r"[\[<>=]", requirement)[0] for requirement in groups["test"]]

    for name in names:
        assert re.search(rf"^{name}==", requirements, re.MULTILINE), name
    assert "://" not in requirements
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\w)", requirements)[1:])


RECORD = re.compile(
    r"# (?P<number>\d+)\. .+\n\n"
    r"(?P<date>\d{4}-\d\d-\d\d)\. (Accepted|Superseded by \[\d{4}\]\(.+\))\.\n\n"
)


def test_decisions_have_a_number_a_date_and_a_status() -> None:
    """Their numbers follow one another, in the order of their dates."""
    pages = sorted((ROOT / "docs" / "decisions").iterdir())
    dates = []
    for number, page in enumerate(pages, start=1):
        assert page.name.startswith(f"{number:04}-"), page.name
        found = RECORD.match(page.read_text(encoding="utf-8"))
        assert found, page.name
        assert int(found["number"]) == number, page.name
        dates.append(found["date"])
    assert dates == sorted(dates)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        assert (page.parent / target).exists(), target


def test_the_code_is_formatted_and_clean() -> None:
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [tool("ruff"), *check, "--no-cache", "tests", "trackbed", "benchmarks"],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout


def test_one_module_imports_what_copier_keeps_private() -> None:
    """A new version of Copier then has one place to break."""
    listed = git(ROOT, "ls-files", "*.py", ":!template", ":!tests/chassis").splitlines()
    found = {
        name
        for name in listed
        if (ROOT / name).is_file() and any(is_private(module) for module in imported(ROOT / name))
    }
    assert found == {"trackbed/internals.py"}


def imported(module: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_private(name: str) -> bool:
    package, *parts = name.split(".")
    return package == "copier" and any(part.startswith("_") for part in parts)


def test_one_module_of_the_chassis_imports_the_services_own_names() -> None:
    """Besides it, only tables of features do, which share the service's `Base`."""
    found = {
        module.name
        for module in sorted((ROOT / "template" / "app" / "chassis").rglob("*.py*"))
        if re.search(
            r"^\s*(from|import) app(\.(main|models|settings|api)\b| import)",
            module.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }
    assert found == {"assembly.py.jinja", "models.py", "env.py"}


RIDDLE = re.compile(r"(What|Whether|Who|Whose|Whom|Where|How|Which|When)\b")


def docstrings(module: Path) -> Iterator[str]:
    """Yield the docstrings of a module, those below its constants among them."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        body = getattr(node, "body", [])
        if isinstance(body, list):
            for part in body:
                if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                    yield str(part.value.value).strip()


@pytest.mark.parametrize("directory", ["template/app/chassis", "trackbed"])
def test_docstrings_are_plain(directory: str) -> None:
    """They begin with a verb or a noun, and their first paragraph is made of whole sentences."""
    found = [
        text for module in sorted((ROOT / directory).rglob("*.py")) for text in docstrings(module)
    ]
    first = [text.partition("\n\n")[0].rstrip(":") for text in found]
    riddles = [text for text in first if RIDDLE.match(text)]
    halting = [text for text in first if re.search(r";|:\s", text)]
    assert len(found) > 200
    assert len(riddles) <= 0.03 * len(found), riddles
    assert len(halting) <= 0.1 * len(found), halting
