"""Fixtures of several tests, and the choice of those that fit the project they are run in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.chassis import answers, migrate, revisions
from app.chassis.settings import PROJECT_ROOT
from app.chassis.testing import required_variables
from app.settings import Settings


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: starts the whole service, or waits for seconds")


NEEDS = {
    "conversations": "conversations" in answers.FEATURES,
    "conversations/test_anthropic.py": "anthropic_api_key" in Settings.model_fields,
    "oauth": "oauth" in answers.FEATURES,
    "oauth/test_google.py": "google_client_id" in Settings.model_fields,
    "oauth/test_microsoft.py": "microsoft_client_id" in Settings.model_fields,
    "postgresql": answers.DATABASE == "postgresql",
    "sqlite": answers.DATABASE == "sqlite",
    "sqlite/test_litestream.py": answers.BACKUP == "litestream",
    "sqlite/test_litestream_monitor.py": answers.BACKUP == "litestream",
    "sqlite/test_litestream_relay.py": answers.BACKUP == "litestream",
    "sqlite/test_rotation.py": answers.BACKUP == "volume",
    "test_page.py": bool(answers.FEATURES),
}
"""Tests of code that some answers render only, and whether this project has it."""

collect_ignore = [path for path, fits in NEEDS.items() if not fits]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let a warning fail the test that meets it."""
    item.add_marker(pytest.mark.filterwarnings("error"), append=False)


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
        (head,) = revisions.heads_of(revisions.read_revisions(revisions.VERSIONS))
        versions = tmp_path / "project" / "migrations" / "versions"
        versions.mkdir(parents=True)
        for file in revisions.VERSIONS.glob("*.py"):
            (versions / file.name).write_bytes(file.read_bytes())
        for name in ("env.py", "script.py.mako"):
            original = PROJECT_ROOT / "migrations" / name
            (versions.parent / name).write_bytes(original.read_bytes())
        (versions / "added.py").write_text(source.format(head=head), encoding="utf-8")
        (tmp_path / "project" / "pyproject.toml").write_text(
            f'[tool.alembic]\nscript_location = "{versions.parent}"\n', encoding="utf-8"
        )
        for module in (migrate, revisions):
            monkeypatch.setattr(module, "PROJECT_ROOT", tmp_path / "project")
        monkeypatch.setattr(revisions, "VERSIONS", versions)
        return head

    return add
