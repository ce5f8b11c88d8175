# Belongs to the template: your own tests go into tests/, beside this directory.
"""Fixtures of the contract, which need nothing of tests/conftest.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.chassis import migrate
from app.chassis.settings import PROJECT_ROOT
from app.chassis.testing import new_database, outside
from app.chassis.variables import variable
from app.main import create_app
from app.settings import Settings

from .probes import add_probes, make_counter

HERE = Path(__file__).parent
BODY_LIMIT = 100_000
URL = "http://localhost"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "contract: the template's tests of this service")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark these tests, and let no warning fail them, whatever tests/conftest.py says."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "filterwarnings"]
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker("contract")


@pytest.fixture(autouse=True)
def variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Set what .env.example says, with a database of the test's own, and nothing of the machine."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(Settings, name), raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    example = dotenv_values(PROJECT_ROOT / ".env.example")
    found = {name: value for name, value in example.items() if value} | {
        "ENVIRONMENT": "development",
        "DATABASE_URL": new_database(tmp_path),
        "ALLOWED_HOSTS": "localhost,127.0.0.1",
        "MAX_BODY_BYTES": str(BODY_LIMIT),
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def settings(variables: dict[str, str]) -> Settings:
    """Return settings with a new database, which has this service's tables."""
    settings = Settings.load()
    migrate.upgrade(settings)
    return settings


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """Return the application as the server makes it."""
    return create_app()


@pytest.fixture
def service(app: FastAPI) -> Iterator[TestClient]:
    """Open a client of the application as it is."""
    with TestClient(app, URL, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def probed(app: FastAPI, settings: Settings) -> Iterator[TestClient]:
    """Open a client of the application with the probes."""
    outside(settings, make_counter)
    with TestClient(add_probes(app), URL, raise_server_exceptions=False) as client:
        yield client
