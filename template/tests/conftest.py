"""Settings, database and client for tests; nothing of the machine's own environment gets in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.chassis import migrate
from app.chassis.testing import new_database, required_variables
from app.main import create_app
from app.settings import Settings


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let a warning fail the test that meets it; one at an import is only shown."""
    item.add_marker(pytest.mark.filterwarnings("error"), append=False)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away every variable that is a setting, and the file .env; give those without default."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in required_variables(Settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(database_url=new_database(tmp_path))


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of the whole application on a database of its own."""
    migrate.upgrade(settings)
    with TestClient(create_app(settings)) as client:
        yield client
