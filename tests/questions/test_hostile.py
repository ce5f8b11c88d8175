"""Answers that would break a careless template: refused with one line, or rendered verbatim."""

import re
from html.parser import HTMLParser
from pathlib import Path

import copier
import pytest
from copier.errors import UserMessageError
from markdown_it import MarkdownIt

from support import (
    commit,
    constants,
    files,
    git,
    lint,
    load_json,
    load_toml,
    mostly_long,
    parse_everything,
    recorded,
)

ACCEPTED = [
    'Say "hi"',
    "It's 'quoted'",
    "Both ' and \"",
    '"""docstring"""',
    r"C:\temp\new",
    "Ends in a backslash\\",
    r"\u0041 \x41 \N{BULLET}",
    '"; import os #',
    "C #",
    "{{ 7*7 }} {# comment #}",
    "{% raw %}",
    "${X} $(id) `id` $$",
    "../x",
    "%s %(name)s {name} {0}",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "key: yaml",
    ": yaml",
    "*alias &anchor !tag",
    "[list] | {map}",
    "<script>alert(1)</script>",
    "&amp; &#65; <b>",
    "[text](https://example.com) **bold** _it_ ~~no~~",
    "https://example.com",
    "\N{ROCKET} Rocket",
    "Team \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
    "مرحبا (بالعالم)",
    "שלום, עולם!",
    "e\N{COMBINING ACUTE ACCENT}te\N{COMBINING ACUTE ACCENT}",
    "zero\N{ZERO WIDTH SPACE}width\N{ZERO WIDTH NO-BREAK SPACE}",
    "no\N{NO-BREAK SPACE}break",
]

# Ruff recognizes the project's own modules by their files, of which some tests render a few only.
OWN_MODULES = ("--config", "lint.isort.known-first-party = ['app']")

# words that mean something to YAML, Python or Windows
WORDS = [("CON", "NUL"), ("class", "None"), ("null", "yes"), ("1e3", "2026-11-23")]

# name and description of projects that are updated
UPDATED = [
    ("null", "{{ 7*7 }} {% raw %} {# comment #} ${X} $(id) `id` %s {0} <b>"),
    ("1e3", "C:\\temp\\new \\u0041 \\"),
    ("2026-11-23", '"It\'s" """; import os #'),
    ("# heading", ": yaml"),
    ("- item", "\N{ROCKET} مرحبا (بالعالم)"),
]

REFUSED = [
    "two\nlines",
    "carriage\rreturn",
    "tab\tulator",
    "nul\0byte",
    "escape\x1b[31mred",
    "delete\x7f",
    "next\x85line",
    "line\N{LINE SEPARATOR}separator",
    "half of a pair \ud83d",
    "right-to-left \N{RIGHT-TO-LEFT OVERRIDE}override",
    "isolate \N{LEFT-TO-RIGHT ISOLATE}",
    "x" * 500,
    " leading",
    "trailing\N{NO-BREAK SPACE}",
]

REFUSED_PATHS = [
    '/data"; rm -rf /',
    "/data'; DROP TABLE notes",
    "/data\nRUN id",
    "/data\0",
    "/data#",
    "/data:ro",
    "/data?mode=memory",
    "/da ta",
    "/data/../etc",
    "/data/./x",
    "//data",
    "/data/",
    "data",
    "./data",
    "~/data",
    "C:\\data",
    "\\data",
    "/",
    "/.",
    "/..",
    "/app",
    "/app/data",
    "/etc/x",
    "/proc",
    "/dev/shm",
    "/usr/local/data",
    "/$HOME",
    "/${X}",
    "/`id`",
    "/{{ 7*7 }}",
    "/%(here)s",
    "/*",
    "/\N{RIGHT-TO-LEFT OVERRIDE}data",
    "/daten-ü",
    "/" + "x" * 500,
]

# text that is to be a list
REFUSED_LISTS = [
    "[google]; rm -rf /",
    "[google] # comment",
    "[google, $(id)]",
    "[google, `id`]",
    "[google, {{ 7*7 }}]",
    "{{ ['google'] }}",
    "{% raw %}",
    "[google, !!python/name:os.system ]",
    "!!python/object/apply:os.system [id]",
    "!!set {google}",
    "[&a google, *a]",
    "&a [*a]",
    "[google: true]",
    "[? google]",
    "[google, null]",
    "[google,, microsoft]",
    "[google microsoft]",
    "[google, 'microsoft]",
    "[\"'google'\"]",
    "[goo\\x67le]",
    '["goo\\x67le"]',
    "[google\n]",
    "[google]\n---\n[microsoft]",
    "[google\tmicrosoft]",
    "[google\0]",
    "[google\x85]",
    "[google\ud83d]",
    "[\N{FULLWIDTH LATIN SMALL LETTER G}oogle]",
    "[google\N{NO-BREAK SPACE}]",
    "[GOOGLE]",
    "[" * 5000,
    "[" * 5000 + "]" * 5000,
    "[" + "google," * 20000 + "]",
    "[" + " " * 100000 + "x]",
]


def refusal(template: Path, folder: Path, **answers: object) -> str:
    with pytest.raises(UserMessageError) as caught:
        copier.run_copy(str(template), folder, data=answers, defaults=True, quiet=True)
    assert not folder.exists()
    return caught.value.message


def copied_as_they_are(template: Path) -> list[str]:
    """Patterns of the files that can hold no answer, to save the time they take."""
    names = files(template / "template")
    return [f"/{name}" for name in names if not name.endswith(".jinja")]


def assert_intact(project: Path, name: str, description: str) -> None:
    """Both texts are values, in every file that holds them, and nothing but text."""
    parse_everything(project)
    lint(project, options=OWN_MODULES)
    answers = recorded(project)
    assert (answers["project_name"], answers["project_description"]) == (name, description)
    values = constants(project / "app/chassis/answers.py")
    assert (values["PROJECT_NAME"], values["PROJECT_DESCRIPTION"]) == (name, description)
    assert load_toml(project / "pyproject.toml")["project"]["description"] == description
    assert paragraphs(project / "README.md")[:2] == [name, description]
    for path in files(project):
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", path)


def paragraphs(path: Path) -> list[str]:
    """Headings and paragraphs of a Markdown file, which fails on markup in the first two."""
    tokens = MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8"))
    assert [token.type for token in tokens[:6]] == [
        *("heading_open", "inline", "heading_close"),
        *("paragraph_open", "inline", "paragraph_close"),
    ]
    inlines = [token for token in tokens if token.type == "inline"]
    for inline in inlines[:2]:
        assert {child.type for child in inline.children or ()} <= {"text", "text_special"}
    return ["".join(child.content for child in inline.children or ()) for inline in inlines]


@pytest.mark.parametrize(
    ("name", "description"),
    mostly_long([*WORDS, *((text, text) for text in ACCEPTED)], fast=len(WORDS) + 2),
    ids=ascii,
)
def test_text_stays_text(name: str, description: str, snapshot: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    answers = {"project_name": name, "project_description": description}
    left_out = copied_as_they_are(snapshot)
    copier.run_copy(
        str(snapshot), project, data=answers, exclude=left_out, defaults=True, quiet=True
    )
    assert_intact(project, name, description)


class Names(HTMLParser):
    """The text right inside of the elements that name a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tag = ""
        self.texts = {"title": "", "h1": ""}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, _: object) -> None:
        self.tag = tag

    def handle_endtag(self, tag: str) -> None:
        self.tag = f"/{tag}"

    def handle_data(self, data: str) -> None:
        if self.tag in self.texts:
            self.texts[self.tag] += data


@pytest.mark.parametrize(
    "name",
    mostly_long([name for name in ACCEPTED if re.search("[<>&\"'{]", name)], fast=4),
    ids=ascii,
)
def test_name_stays_text_in_the_page(name: str, snapshot: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    answers = {"project_name": name, "features": "[conversations, oauth]"}
    page = ["*", "!/app", "/app/*", "!/app/chassis", "/app/chassis/*", "!/app/chassis/page"]
    copier.run_copy(str(snapshot), project, data=answers, exclude=page, defaults=True, quiet=True)
    html = (project / "app/chassis/page/page.html").read_text(encoding="utf-8")
    assert Names(html).texts == {"title": name, "h1": name}


@pytest.mark.long
@pytest.mark.parametrize(("name", "description"), UPDATED, ids=ascii)
def test_text_survives_an_update(
    name: str, description: str, releases: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    answers = {"project_name": name, "project_description": description}
    copier.run_copy(
        str(releases), project, data=answers, vcs_ref="0.1.0", defaults=True, quiet=True
    )
    before = recorded(project)
    commit(project, "New project")
    copier.run_update(project, defaults=True, overwrite=True, quiet=True)
    assert recorded(project) == {**before, **answers, "_commit": "0.2.0"}
    changed = git(project, "status", "--porcelain").splitlines()
    assert changed == [" M .copier-answers.yml", " M app/chassis/__init__.py"]


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text)[:40])
@pytest.mark.parametrize("question", ["project_name", "project_description"])
def test_text_is_refused(question: str, text: str, snapshot: Path, tmp_path: Path) -> None:
    message = refusal(snapshot, tmp_path / "project", **{question: text})
    assert f"{question}: " in message
    assert text not in message
    assert "\n" not in message


@pytest.mark.parametrize("path", REFUSED_PATHS, ids=lambda path: ascii(path)[:40])
def test_path_is_refused(path: str, snapshot: Path, tmp_path: Path) -> None:
    message = refusal(snapshot, tmp_path / "project", volume_path=path)
    assert "volume_path: " in message
    assert "\n" not in message


@pytest.mark.parametrize("text", REFUSED_LISTS, ids=lambda text: ascii(text)[:40])
@pytest.mark.parametrize("wrapped", [False, True], ids=["text", "an item"])
def test_list_is_refused(wrapped: bool, text: str, snapshot: Path, tmp_path: Path) -> None:
    """The text of a list, and the same as an item of one."""
    answer = ["google", text] if wrapped else text
    answers = {"features": ["oauth"], "oauth_providers": answer}
    message = refusal(snapshot, tmp_path / "project", **answers)
    assert "oauth_providers: " in message
    assert text not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("builder", "path"),
    [("dockerfile", "/-rf"), ("railpack", "/_.-x"), ("nixpacks", "/data/sub.dir/3")],
)
def test_path_stays_a_path(builder: str, path: str, snapshot: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    answers = {"volume_path": path, "builder": builder}
    copier.run_copy(str(snapshot), project, data=answers, defaults=True, quiet=True)
    parse_everything(project)
    lint(project)
    assert recorded(project)["volume_path"] == path
    assert load_json(project / "railway.json")["deploy"]["requiredMountPath"] == path
