# Belongs to the template: your own tests go into tests/, beside this directory.
"""What several tests of the chassis need."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.chassis import migrate
from app.chassis.settings import PROJECT_ROOT
from app.chassis.testing import required_variables
from app.settings import Settings


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let a warning fail the test, unless it is of the service's own code."""
    others = "default:::(?!app[.]chassis|tests[.]chassis|_pytest)"
    item.add_marker(pytest.mark.filterwarnings("error", others), append=False)


@pytest.fixture(autouse=True)
def required(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the settings of the service's own that have no default a value."""
    for name, value in required_variables(Settings).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def add_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Put one more revision after the service's newest, in a copy of its migrations.

    The source has `{head}` where its predecessor's name belongs; the return value is that name.
    """

    def add(source: str) -> str:
        (head,) = migrate.heads_of(migrate.read_revisions(migrate.VERSIONS))
        versions = tmp_path / "project" / "migrations" / "versions"
        versions.mkdir(parents=True)
        for file in migrate.VERSIONS.glob("*.py"):
            (versions / file.name).write_bytes(file.read_bytes())
        for name in ("env.py", "script.py.mako"):
            original = PROJECT_ROOT / "migrations" / name
            (versions.parent / name).write_bytes(original.read_bytes())
        (versions / "added.py").write_text(source.format(head=head), encoding="utf-8")
        (tmp_path / "project" / "pyproject.toml").write_text(
            f'[tool.alembic]\nscript_location = "{versions.parent}"\n', encoding="utf-8"
        )
        monkeypatch.setattr(migrate, "PROJECT_ROOT", tmp_path / "project")
        monkeypatch.setattr(migrate, "VERSIONS", versions)
        return head

    return add
