"""A project's README.md and RUNBOOK.md, and the places that name their sections."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import ROOT, Answers, files
from test_ownership import EVERYTHING, RENDERS

Render = Callable[..., Path]

EACH = pytest.mark.parametrize("answers", RENDERS, ids=lambda answers: repr(answers)[:30])


def headings(page: Path) -> set[str]:
    """Return the headings of a page, without those that are comments in a block of commands."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return set(re.findall(r"^#+ (.+)$", text, re.MULTILINE))


def anchors(page: Path) -> set[str]:
    return {heading.lower().replace(" ", "-") for heading in headings(page)}


def said(project: Path, pattern: str) -> set[Any]:
    """Find a pattern with groups in every file, also where a text goes on in the next line."""
    joint = re.compile(r'(?:"\s*\n\s*f?"|\n#? *)')
    texts = [joint.sub(" ", path.read_text(encoding="utf-8")) for path in files(project).values()]
    return {found for text in texts for found in re.findall(pattern, text.replace("  ", " "))}


@EACH
def test_links_of_the_readme_lead_into_the_runbook(answers: Answers, render: Render) -> None:
    project = render(**answers)
    for name in ("README.md", "RUNBOOK.md"):
        text = (project / name).read_text(encoding="utf-8")
        found = re.findall(r"\]\((\w*\.?\w*)#([\w-]+)\)", text)
        assert found
        for page, anchor in found:
            assert anchor in anchors(project / (page or name)), anchor


@EACH
def test_sections_that_files_name_are_there(answers: Answers, render: Render) -> None:
    project = render(**answers)
    sections = headings(project / "RUNBOOK.md")
    named = said(project, r"RUNBOOK\.md, ([A-Z][a-z-]+)")
    assert len(named) >= 3
    for first_word in named:
        assert any(section.startswith(first_word) for section in sections), first_word


def test_sections_that_the_closing_message_names_are_there(render: Render) -> None:
    message = (ROOT / "hooks" / "next_steps.jinja").read_text(encoding="utf-8")
    named = set(re.findall(r"RUNBOOK\.md, ([A-Z][\w -]+)", message))
    assert named == {"Deploy on Railway", "Sign-in", "In a larger repository", "Back up"}
    assert named <= headings(render(**EVERYTHING) / "RUNBOOK.md")


@EACH
def test_pages_of_the_template_that_files_name_are_there(answers: Answers, render: Render) -> None:
    project = render(**answers)
    named = said(project, r"(docs/\w+\.md) of the template(?:, ([A-Z]\w+))?")
    assert {page for page, _ in named} >= {"docs/building.md", "docs/upgrading.md"}
    for page, section in named:
        assert any(section in heading for heading in headings(ROOT / page)), (page, section)


@EACH
def test_the_readme_has_five_commands(answers: Answers, render: Render) -> None:
    """They are short, and those of the service exist."""
    project = render(**answers)
    text = (project / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    assert len(block.splitlines()) == 5 + (answers.get("database") == "postgresql")
    assert subprocess.run(["bash", "-n", "-c", block]).returncode == 0
    cli = (project / "app" / "chassis" / "cli.py").read_text(encoding="utf-8")
    engine = answers.get("database", "sqlite")
    its_own = (project / "app" / "chassis" / str(engine) / "commands.py").read_text("utf-8")
    for command in re.findall(r"python -m app (\w+)", block):
        ours = re.search(rf"^    (?:\w+ = )?add\({command}, ", cli, re.MULTILINE)
        assert ours or f'    "{command}": (' in its_own, command
    assert len(text.splitlines()) <= 45
