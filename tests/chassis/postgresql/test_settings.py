"""Addresses of a database as people write them, and how many connections a process may have."""

import pytest

from app.chassis import answers
from app.chassis.errors import ConfigurationError
from app.chassis.postgresql.settings import RESERVE, SERVER_CONNECTIONS
from app.settings import Settings

from ..production import REQUIRED

SECRET = "s3cret-value"
PRODUCTION = {
    **{name.lower(): value for name, value in REQUIRED.items()},
    "environment": "production",
    "backend_url": "https://api.example.com",
}


def refusal(**values: object) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Settings.load(**values)
    assert SECRET not in str(refused.value)
    return "\n".join(one for one in refused.value.problems if one.startswith("DATABASE"))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_usual_address_is_taken(scheme: str) -> None:
    url = f"{scheme}://us%40er:p%2Fw%25@[::1]:6543/my%20db?sslmode=require"
    found = Settings.load(database_url=url).url
    assert found.drivername == "postgresql+psycopg"
    assert (found.username, found.password) == ("us@er", "p/w%")
    assert (found.host, found.port, found.database) == ("::1", 6543, "my db")
    assert found.query == {"sslmode": "require"}


def test_an_address_of_a_socket_is_taken() -> None:
    found = Settings.load(database_url="postgresql:///app?host=/run/postgresql").url
    assert (found.host, found.query) == (None, {"host": "/run/postgresql"})


def test_white_space_of_a_pasted_value_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", " postgres://app@db/app\n")
    assert Settings.load().url.host == "db"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///data/app.db", "SQLite file"),
        (f"mysql://app:{SECRET}@db/app", "must be the address of a PostgreSQL database"),
        (f"postgresql+asyncpg://app:{SECRET}@db/app", "must be the address"),
        (f"{SECRET}", "must be the address"),
        ("${{postgres.DATABASE_URL}}", "must be the address"),
        (f"postgresql://app:{SECRET}@/app", "names no host"),
        (f"postgresql://app:{SECRET}@db:5432", "names no database"),
        (f"postgresql://app:{SECRET}@db:port/app", "percent-encoded"),
        (f"postgresql://app:{SECRET}/x@db/app", "percent-encoded"),
        (f"postgresql://app:{SECRET}#x@db/app", "%23"),
        (f"postgresql://app:{SECRET}%00@db/app", "%00"),
        (f"postgresql://app:{SECRET}@db/app?pgbouncer=true", "option pgbouncer"),
    ],
)
def test_another_address_is_refused_with_what_to_write(url: str, said: str) -> None:
    assert said in refusal(database_url=url)
    assert said in refusal(database_unpooled_url=url)


def test_production_needs_a_database_of_its_own() -> None:
    said = refusal(**{**PRODUCTION, "database_url": Settings.model_fields["database_url"].default})
    assert said.startswith("DATABASE_URL: is not set")
    assert "${{postgres.DATABASE_URL}}" in said


def test_no_text_of_the_settings_has_the_password() -> None:
    url = f"postgresql://app:{SECRET}@db/app"
    settings = Settings.load(database_url=url, database_unpooled_url=url)
    assert SECRET not in f"{settings!r} {settings} {settings.url} {settings.direct_url!r}"


def test_a_pooler_is_known_by_the_address_that_leads_past_it() -> None:
    url, other = "postgresql://app@pooler/app", "postgresql://app@db/app"
    assert not Settings.load(database_url=url).is_pooled
    assert not Settings.load(database_url=url, database_unpooled_url=url).is_pooled
    pooled = Settings.load(database_url=url, database_unpooled_url=other)
    assert pooled.is_pooled
    assert (pooled.url.host, pooled.direct_url.host) == ("pooler", "db")


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_two_deployments_fit_into_the_servers_connections(
    workers: int, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "REPLICAS", replicas)
    settings = Settings.load(workers=workers)
    assert 2 <= settings.database_connections <= 16
    needed = 2 * replicas * workers * settings.of_process
    if workers * replicas <= 8:
        assert needed <= SERVER_CONNECTIONS - RESERVE
    assert Settings.load(workers=workers, database_connections=5).database_connections == 5


def test_one_connection_is_too_few() -> None:
    assert "one to read and one to write" in refusal(database_connections=1)


def test_a_stop_is_delayed_in_production_only() -> None:
    assert Settings.load().stop_delay == 0
    production = Settings.load(**PRODUCTION)
    assert production.stop_delay == answers.DELAY_SECONDS
    assert production.lock_timeout == 60
