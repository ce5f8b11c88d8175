"""A server for all tests of a process, and a database on it for each."""

from collections.abc import Iterator

import pytest

from app.chassis.postgresql.local import Server
from app.settings import Settings


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    """The address of a new, empty database."""
    return server.new_database()


@pytest.fixture
def settings(url: str) -> Settings:
    return Settings.load(database_url=url)
