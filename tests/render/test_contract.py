"""The contract suite passes whatever an owner makes of a service, and fails if a promise breaks."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import Answers, tool
from test_project import EVERYTHING, ON_POSTGRESQL

Change = Callable[[Path], None]

MOST_LINES = 420
MOST_LINES_OF_ALL = 700


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def add_to_application(project: Path, lines: str) -> None:
    replace(project / "app/main.py", "    return app\n", f"{lines}    return app\n")


def delete_example(project: Path) -> None:
    """Leave no route, no table and no revision."""
    for name in ("app/api/notes.py", "migrations/versions/0001_notes.py", "tests/test_notes.py"):
        (project / name).unlink()
    replace(project / "app/main.py", "from app.api import notes\n", "")
    replace(project / "app/main.py", "    app.include_router(notes.router)\n", "")
    models = project / "app/models.py"
    models.write_text(models.read_text(encoding="utf-8").partition("\n\nclass Note(")[0])


def split_models(project: Path) -> None:
    """Make a package of the models, with a module for the table."""
    base, _, note = (project / "app/models.py").read_text("utf-8").partition("\n\nclass Note(")
    (project / "app/models.py").unlink()
    imports = base.partition("\n\nclass Base(")[0]
    for name, text in {
        "base": base,
        "note": f"{imports}\nfrom app.models.base import Base\n\n\nclass Note({note}",
        "__init__": "from app.models.base import Base\nfrom app.models.note import Note\n",
    }.items():
        (project / f"app/models/{name}.py").parent.mkdir(exist_ok=True)
        (project / f"app/models/{name}.py").write_text(text, encoding="utf-8")


def require_settings(project: Path) -> None:
    """Add settings that need a value: plain, secret, of another name, and by a rule."""
    settings = project / "app/settings.py"
    replace(
        settings,
        "from app.chassis import",
        "from pydantic import Field, SecretStr, field_validator\n\nfrom app.chassis import",
    )
    append(settings, SETTINGS)
    append(project / ".env.example", VARIABLES)


def set_root_path(project: Path) -> None:
    """Have the service below a path of a proxy's."""
    add_to_application(project, '    app.root_path = "/api"\n')


def add_middleware(project: Path) -> None:
    """Ask every request for a key, except for the health check."""
    add_to_application(project, MIDDLEWARE)
    append(project / "app/main.py", KEEPER)
    replace(project / "app/main.py", "import FastAPI\n", "import FastAPI, Request, Response\n")


def use_sqlmodel(project: Path) -> None:
    """Have SQLModel's classes for tables."""
    (project / "app/models.py").write_text(SQLMODEL, encoding="utf-8")
    command = [tool("uv"), "add", "--quiet", "sqlmodel"]
    subprocess.run(command, cwd=project, check=True, timeout=300)


def forget_a_revision(project: Path) -> None:
    append(project / "app/models.py", "    done: Mapped[bool] = mapped_column(default=False)\n")


def say_nothing_of_a_setting(project: Path) -> None:
    append(project / "app/settings.py", "\n    greeting: str = 'Hello'\n")
    append(project / ".env.example", "\nGREETING=Hello\n")


def keep_the_platform_out(project: Path) -> None:
    add_middleware(project)
    replace(project / "app/main.py", 'request.url.path != "/health" and ', "")


def stop_at_the_first_problem(project: Path) -> None:
    settings = project / "app/settings.py"
    old = "from app.chassis import"
    replace(settings, old, f"from pydantic import model_validator\n\n{old}")
    append(settings, HASTY)


def tell_the_cause(project: Path) -> None:
    add_to_application(project, TALKATIVE)
    replace(project / "app/main.py", "import FastAPI\n", "import FastAPI, Request, Response\n")


CHANGES = [
    require_settings,
    delete_example,
    split_models,
    set_root_path,
    add_middleware,
    use_sqlmodel,
]
BREACHES: dict[Change, str] = {
    forget_a_revision: "test_the_models_are_what_the_migrations_make",
    say_nothing_of_a_setting: "test_every_setting_has_a_description",
    keep_the_platform_out: "test_health_follows_the_database",
    stop_at_the_first_problem: "test_production_refuses_and_names_every_problem",
    tell_the_cause: "test_an_error_says_nothing_of_its_cause",
}


@pytest.fixture
def project(installed: Callable[..., Path], tmp_path: Path) -> Path:
    """A project to change, with an environment of its own."""
    project = tmp_path / "project"
    shutil.copytree(installed(), project, symlinks=True)
    return project


def check(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # as a module: the command pytest would be the one of the environment that was copied
    command = [tool("uv"), "run", "python", "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, encoding="utf-8", timeout=300)


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_it_passes_when_the_service_is_its_owners(change: Change, project: Path) -> None:
    (project / "tests/conftest.py").unlink()
    change(project)

    done = check(project, "tests/contract")

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[0-9]+ passed", done.stdout, re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_it_fails_for_a_broken_promise(breach: Change, project: Path) -> None:
    breach(project)

    done = check(project, "tests/contract", "-k", BREACHES[breach])

    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"^FAILED \S+::{BREACHES[breach]}", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.long
def test_warnings_that_the_owner_makes_errors_fail_none_of_it(project: Path) -> None:
    """The owner's tests keep their rule; `-m "not contract"` runs them alone."""
    add_to_application(project, '    warnings.warn("old", DeprecationWarning, stacklevel=1)\n')
    replace(project / "app/main.py", "from fastapi", "import warnings\n\nfrom fastapi")

    assert check(project, "tests/contract").returncode == 0
    own = check(project, "-m", "not contract")
    assert own.returncode == 1
    assert "DeprecationWarning: old" in own.stdout
    assert "tests/contract" not in own.stdout


@pytest.mark.parametrize(
    ("answers", "most"),
    [({}, MOST_LINES), (ON_POSTGRESQL, MOST_LINES), (EVERYTHING, MOST_LINES_OF_ALL)],
    ids=["least", "postgresql", "all"],
)
def test_it_is_short(render: Callable[..., Path], answers: Answers, most: int) -> None:
    suite = render(**answers) / "tests" / "contract"
    assert sum(file.read_text("utf-8").count("\n") for file in suite.iterdir()) <= most


SETTINGS = """
    partner: str = Field(description="Name of the partner")
    partner_key: SecretStr = Field(description="Key of the partner's API")
    address: str = Field(validation_alias="PARTNER_ADDRESS", description="Where the partner is")
    region: str = Field(default="", description="Where the customers are")

    @field_validator("region")
    @classmethod
    def region_is_known(cls, value: str) -> str:
        if value not in {"eu", "us"}:
            raise ValueError("must be eu or us")
        return value
"""

VARIABLES = """
# Name of the partner
PARTNER=ACME

# Key of the partner's API
PARTNER_KEY=example

# Where the partner is
PARTNER_ADDRESS=localhost

# Where the customers are
REGION=eu
"""

MIDDLEWARE = '    app.middleware("http")(keep)\n'

KEEPER = """

async def keep(request: Request, call_next: object) -> Response:
    if request.url.path != "/health" and request.headers.get("X-Key") != "secret":
        return Response(status_code=401)
    return await call_next(request)
"""

HASTY = """
    @model_validator(mode="before")
    @classmethod
    def refuse(cls, given: dict[str, object]) -> dict[str, object]:
        if given.get("environment") == "production" and not given.get("partner"):
            raise ValueError("PARTNER is missing")
        return given
"""

TALKATIVE = """
    @app.exception_handler(RuntimeError)
    async def told(_: Request, error: RuntimeError) -> Response:
        return Response(str(error), status_code=500)

"""

SQLMODEL = '''"""The service's tables."""

from datetime import datetime

from sqlalchemy import String
from sqlmodel import Field, SQLModel

from app.chassis.times import now

Base = SQLModel
Base.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Note(SQLModel, table=True):
    __tablename__ = "notes"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: int | None = Field(default=None, primary_key=True)
    text: str = Field(sa_type=String(2000))
    created_at: datetime = Field(default_factory=now)
'''
