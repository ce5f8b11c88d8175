"""What people do to a project, each as a function that does it.

An edit that the ownership rules allow has to survive every update, in its place and without a
conflict. Any other may end in a conflict that is marked, or stay as it is, and is never lost.
"""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from support import Answers, tool
from support.ownership import ANCHORS, below_anchor

CI = ".github/workflows/ci.yml"


@dataclass(frozen=True)
class Edit:
    name: str
    change: Callable[[Path], None]
    allowed: bool
    needs: Answers
    since: Version
    anchors: tuple[str, ...]
    """Files below whose anchors it adds: where they have no such line yet, it may conflict."""
    unordered: tuple[str, ...]
    """Files in which it adds to a list whose order depends on the release."""

    def keeps_its_place(self, project: Path) -> bool:
        """Whether the update of this project, as it was rendered, may have no conflict."""
        return self.allowed and all(has_anchor(project, name) for name in self.anchors)


EDITS: dict[str, Edit] = {}


def edit(
    *,
    allowed: bool = True,
    since: str = "0",
    anchors: tuple[str, ...] = (),
    unordered: tuple[str, ...] = (),
    **needs: str | int | list[str],
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Enter a function into EDITS."""

    def enter(change: Callable[[Path], None]) -> Callable[[Path], None]:
        name = change.__name__
        EDITS[name] = Edit(name, change, allowed, needs, Version(since), anchors, unordered)
        return change

    return enter


def has_anchor(project: Path, name: str) -> bool:
    return f"{ANCHORS[name]}\n" in (project / name).read_text(encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def run(project: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr


# The service's own code ------------------------------------------------------
@edit()
def router_added(project: Path) -> None:
    """A module of routes, and the line that takes it into the application."""
    (project / "app/api/things.py").write_text(THINGS, encoding="utf-8")
    main = project / "app/main.py"
    replace(main, "from app.api import notes\n", "from app.api import notes, things\n")
    replace(
        main,
        "    app.include_router(notes.router)\n",
        "    app.include_router(notes.router)\n    app.include_router(things.router)\n",
    )


@edit()
def table_added(project: Path) -> None:
    """A model, and its migration."""
    append(project / "app/models.py", THING)
    (project / "migrations/versions/0002_things.py").write_text(MIGRATION, encoding="utf-8")


@edit()
def models_changed(project: Path) -> None:
    """A method on the example's model."""
    append(project / "app/models.py", REPRESENTATION)


@edit()
def health_check_added(project: Path) -> None:
    """A check of the service's own, through the hook that the chassis offers for it."""
    main = project / "app/main.py"
    replace(
        main,
        "import create_application\n",
        "import create_application\nfrom app.chassis.health import Unhealthy\n",
    )
    replace(
        main,
        "create_application(settings or Settings.load())",
        'create_application(settings or Settings.load(), health_checks={"queue": queue})',
    )
    append(main, CHECK)


@edit()
def environment_filled(project: Path) -> None:
    """A .env of one's own, which git ignores."""
    example = (project / ".env.example").read_text(encoding="utf-8")
    filled = example.replace("SECRET_KEY=\n", f"SECRET_KEY={'s3cret' * 6}\n")
    (project / ".env").write_text(filled, encoding="utf-8")


@edit()
def workflow_added(project: Path) -> None:
    """A workflow of one's own, beside the template's."""
    (project / ".github/workflows").mkdir(parents=True, exist_ok=True)
    (project / ".github/workflows/deploy.yml").write_text(WORKFLOW, encoding="utf-8")


@edit()
def example_renamed(project: Path) -> None:
    """The example becomes the first routes of the service's own."""
    (project / "app/api/notes.py").rename(project / "app/api/items.py")
    for name in ("app/main.py", "tests/test_notes.py"):
        text = (project / name).read_text(encoding="utf-8")
        text = text.replace("from app.api import notes", "from app.api import items")
        text = text.replace("app.api.notes", "app.api.items").replace("(notes.", "(items.")
        (project / name).write_text(text, encoding="utf-8")


@edit()
def example_deleted(project: Path) -> None:
    """The example's routes and tests go, its table stays."""
    (project / "app/api/notes.py").unlink()
    (project / "tests/test_notes.py").unlink()
    main = project / "app/main.py"
    replace(main, "from app.api import notes\n", "")
    replace(main, "    app.include_router(notes.router)\n", "")


@edit()
def models_split(project: Path) -> None:
    """The one module of tables becomes a package."""
    (project / "app/models").mkdir()
    (project / "app/models.py").rename(project / "app/models/__init__.py")


@edit()
def line_endings_changed(project: Path) -> None:
    """An editor on Windows has saved three files of the service."""
    for name in ("README.md", "app/settings.py", "tests/conftest.py"):
        to_windows(project / name)


@edit()
def formatter_changed(project: Path) -> None:
    """Longer lines, and the service's own files formatted to them."""
    replace(project / "pyproject.toml", "line-length = 100\n", "line-length = 120\n")
    own = [
        path
        for name in ("app/api", "app/models", "migrations/versions")
        for path in sorted((project / name).glob("*.py"))
    ]
    own += [project / name for name in ("app/main.py", "app/settings.py", "tests/conftest.py")]
    run(project, tool("ruff"), "format", "--no-cache", *map(str, own))


# Files that are shared -------------------------------------------------------
@edit(unordered=("pyproject.toml",))
def dependency_added(project: Path) -> None:
    """A library and a tool, with `uv add`."""
    run(project, tool("uv"), "add", "--frozen", "humanize>=4")
    run(project, tool("uv"), "add", "--frozen", "--dev", "pytest-timeout>=2.3")


@edit()
def tool_configured(project: Path) -> None:
    """Settings of a tool of one's own, at the end of pyproject.toml."""
    append(project / "pyproject.toml", '\n[tool.coverage.run]\nbranch = true\nsource = ["app"]\n')


@edit(anchors=(".env.example",))
def setting_added(project: Path) -> None:
    """A field and a line, and a row where the README has a table of variables."""
    append(project / "app/settings.py", '\n    greeting: str = "Hello"\n')
    below_anchor(project, ".env.example", "\n# How people are greeted\nGREETING=Hello\n")
    row = "| `GREETING` | how people are greeted | `Hello` |\n"
    readme = project / "README.md"
    own = "\nYour own: a field in `app/settings.py`"  # below the table that it has up to 0.4.1
    if own in readme.read_text(encoding="utf-8"):
        replace(readme, own, row + own)


@edit()
def readme_rewritten(project: Path) -> None:
    """Prose of one's own in several of the README's places: it is the user's."""
    readme = project / "README.md"
    replace(readme, " This page", " Ask Ann first. This page")
    replace(readme, "[uv](https://docs.astral.sh/uv/)", "our laptop image with [uv]()")
    update = "This project was made from a template"
    if update not in readme.read_text(encoding="utf-8"):
        update = "[Update it](RUNBOOK.md#update)"
    replace(readme, update, f"Ask Ann before you update. {update}")


@edit()
def readme_continued(project: Path) -> None:
    """A section of one's own at the README's end."""
    append(project / "README.md", "\n## On call\n\nAnn in the morning, Bob in the afternoon.\n")


@edit(ci="github", anchors=(CI,))
def workflow_changed(project: Path) -> None:
    """A step at the anchor, a job below it, and one of the template's steps changed."""
    below_anchor(project, CI, STEP_AND_JOB)
    replace(project / CI, "run: uv run pytest\n", "run: uv run pytest --durations 5\n")


@edit(builder="dockerfile", anchors=("Dockerfile",))
def system_package_added(project: Path) -> None:
    """A package of Debian's, below the anchor."""
    install = "RUN apt-get update && apt-get install -y --no-install-recommends imagemagick\n"
    below_anchor(project, "Dockerfile", install)


@edit(builder="dockerfile", anchors=(".dockerignore",))
def image_made_smaller(project: Path) -> None:
    """A directory that the image does not need."""
    if has_anchor(project, ".dockerignore"):
        below_anchor(project, ".dockerignore", "docs\n")
    else:
        append(project / ".dockerignore", "docs\n")


@edit(builder="nixpacks")
def phase_added(project: Path) -> None:
    """A phase of the build of one's own, at the file's end."""
    append(project / "nixpacks.toml", '\n[phases.setup]\naptPkgs = ["imagemagick"]\n')


@edit()
def region_added(project: Path) -> None:
    """The region in which the service runs."""
    region = (
        '    "multiRegionConfig": {\n      "europe-west4-drams3a": { "numReplicas": 1 }\n    },\n'
    )
    replace(project / "railway.json", '    "numReplicas": 1,\n', f'    "numReplicas": 1,\n{region}')


@edit()
def railway_json_deleted(project: Path) -> None:
    """What the README of 0.3.0 said to do before `railway config apply`."""
    (project / "railway.json").unlink()


@edit(anchors=(".railway/railway.py",))
def variable_declared(project: Path) -> None:
    """A variable that `railway config apply` leaves alone."""
    below_anchor(project, ".railway/railway.py", '    "GREETING": preserve(),\n')


@edit()
def repository_filled_in(project: Path) -> None:
    """The repository that is deployed on every push."""
    program = project / ".railway/railway.py"
    replace(program, 'REPOSITORY = ""', 'REPOSITORY = "acme/billing"')


@edit(backup="litestream", since="0.2.0")
def retention_changed(project: Path) -> None:
    """Any moment of a month, and less traffic."""
    replace(project / "litestream.yml", "retention: 168h", "retention: 720h")
    replace(project / "litestream.yml", "sync-interval: 1s", "sync-interval: 10s")


@edit(anchors=(".gitignore",))
def more_ignored(project: Path) -> None:
    """Files that git does not keep."""
    below_anchor(project, ".gitignore", "/exports/\n.idea/\n")


@edit()
def process_added(project: Path) -> None:
    """A second kind of process, at the Procfile's end."""
    append(project / "Procfile", "worker: python -m app.worker\n")


@edit(allowed=False)
def shared_line_endings_changed(project: Path) -> None:
    """An editor on Windows has saved a shared file."""
    to_windows(project / "railway.json")


# The template's files --------------------------------------------------------
@edit(allowed=False)
def chassis_edited(project: Path) -> None:
    """What the files' first lines advise against."""
    health = project / "app/chassis/health.py"
    replace(health, "CHECK_TIMEOUT: Final = 3.0", "CHECK_TIMEOUT: Final = 8.0")
    replace(
        health, "import anyio.to_thread\n", "import anyio.from_thread\nimport anyio.to_thread\n"
    )
    replace(health, "import inspect\n", "import contextlib\nimport inspect\n")
    append(health, '\n\ndef ready() -> bool:\n    """Ours."""\n    return True\n')


def to_windows(path: Path) -> None:
    path.write_bytes(re.sub(rb"(?<!\r)\n", b"\r\n", path.read_bytes()))


THINGS = '''\
"""Things: the service's own routes."""

from fastapi import APIRouter

from app.chassis.database import Reader

router = APIRouter(prefix="/things", tags=["things"])


@router.get("")
def list_things(session: Reader) -> list[str]:
    """Nothing yet."""
    return []
'''

THING = """

class Thing(Base):
    __tablename__ = "things"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
"""

REPRESENTATION = '''

def describe(note: Note) -> str:
    """For the log."""
    return f"note {note.id}"
'''

MIGRATION = '''\
"""Create the table of things.

Revision ID: 0002
Revises: 0001
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "things",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_things"),
    )


def downgrade() -> None:
    op.drop_table("things")
'''

CHECK = '''

def queue() -> None:
    """Fails when nobody takes work off the queue."""
    waiting = 0
    if waiting > 1000:
        raise Unhealthy("too much is waiting")
'''

WORKFLOW = """\
name: Deploy

on: workflow_dispatch

jobs:
  deploy:
    runs-on: ubuntu-latest
    steps:
      - name: Deploy
        run: railway up
"""

STEP_AND_JOB = """\
      - name: Count the notes
        run: uv run python -m app status

  documentation:
    runs-on: ubuntu-latest
    timeout-minutes: 15
    steps:
      - name: Install uv
        run: pipx install uv
      - name: Install the dependencies
        run: uv sync --locked
      - name: Build
        run: uv run mkdocs build
"""

BUNDLES: list[list[str]] = [
    [
        "router_added",
        "table_added",
        "dependency_added",
        "setting_added",
        "region_added",
        "more_ignored",
    ],
    [
        "environment_filled",
        "example_renamed",
        "tool_configured",
        "readme_continued",
        "variable_declared",
        "repository_filled_in",
        "process_added",
        "railway_json_deleted",
    ],
    [
        "models_split",
        "formatter_changed",
        "workflow_changed",
        "system_package_added",
        "image_made_smaller",
    ],
    [
        "health_check_added",
        "models_changed",
        "workflow_added",
        "retention_changed",
        "phase_added",
        "readme_rewritten",
    ],
    [
        "example_deleted",
        "line_endings_changed",
        "shared_line_endings_changed",
        "chassis_edited",
    ],
]
"""Edits of different files, made together because an update takes seconds."""

ALTERNATIVES = {"example_deleted", "railway_json_deleted"}
"""Allowed ones that cannot be made together with all the others."""

EVERYTHING = [name for name, edit in EDITS.items() if edit.allowed and name not in ALTERNATIVES]
