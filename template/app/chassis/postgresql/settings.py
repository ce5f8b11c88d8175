# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Settings of the database's server, and of the replicas that share it."""

import re
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import Field, ValidationInfo, field_validator

from app.chassis import answers
from app.chassis.settings import CoreSettings, InProduction, is_production

if TYPE_CHECKING:
    from sqlalchemy import URL

SERVER_CONNECTIONS: Final = 100
"""Maximum number of connections of Railway's server, and by default of any server."""

RESERVE: Final = 10
"""Connections that are left for people, migrations and copies."""

MOST: Final = 16
"""Maximum number of connections by default, because one process has no use for more."""

LOCAL_PORT: Final = 54329
"""Port of the server that `python -m app database` runs."""

LOCAL_URL: Final = f"postgresql://app@127.0.0.1:{LOCAL_PORT}/app"

URL_FORM: Final = re.compile(r"postgres(ql)?(\+psycopg)?://[^\x00-\x20\x7f]+", re.ASCII)

OPTIONS: Final = frozenset(
    {
        "application_name",
        "channel_binding",
        "connect_timeout",
        "gssencmode",
        "host",
        "options",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "target_session_attrs",
    }
)
"""Options of an address that make sense here. Those of other drivers would be refused later."""

EXAMPLE: Final = "postgresql://user:password@host:5432/database"


class PostgreSQLSettings(CoreSettings):
    """Settings of the database, which is a server of its own."""

    # An address has a password in it, which no text of the settings may show
    database_url: str = Field(
        default=LOCAL_URL,
        repr=False,
        description="The PostgreSQL database; by default the one of `python -m app database`",
    )
    database_unpooled_url: str = Field(
        default="",
        repr=False,
        description="The same database without its pooler, if DATABASE_URL leads to PgBouncer",
    )
    database_connections: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Connections of each process for its routes, 2 or more; by default as many as "
        f"two deployments can have of the server's {SERVER_CONNECTIONS}, at most {MOST}",
    )
    stop_delay: Annotated[float, InProduction(answers.DELAY_SECONDS)] = Field(
        default=0,
        ge=0,
        le=answers.DRAINING_SECONDS - answers.WORKER_SECONDS,
        description="Seconds that a stopping service goes on, until requests are sent elsewhere",
    )
    lock_timeout: Annotated[float, InProduction(60)] = Field(
        default=3,
        ge=0,
        description="Seconds to wait at start for the database, and for who changes its schema",
    )

    @field_validator("database_url")
    @classmethod
    def database_is_kept(cls, value: str, info: ValidationInfo) -> str:
        require_address(value)
        if is_production(info) and value == LOCAL_URL:
            raise ValueError(
                "is not set; on Railway set it to ${{postgres.DATABASE_URL}}, the variable of the "
                f"database's service, and elsewhere to {EXAMPLE}"
            )
        return value

    @field_validator("database_unpooled_url")
    @classmethod
    def unpooled_is_an_address(cls, value: str) -> str:
        if value:
            require_address(value)
        return value

    @field_validator("database_connections")
    @classmethod
    def connections_fit(cls, value: int, info: ValidationInfo) -> int:
        if value == 1:
            raise ValueError("must be 2 or more, one to read and one to write")
        if value:
            return value
        workers: int = info.data.get("workers", answers.WORKERS)
        processes = 2 * answers.REPLICAS * workers
        each = (SERVER_CONNECTIONS - RESERVE) // processes
        # What of_process counts for this many is not more than `each`
        return max(2, min(MOST, (each - 1) * 2 // 3))

    @property
    def for_others(self) -> int:
        """Return the number of a process's connections for code outside of a route."""
        return max(1, self.database_connections // 2)

    @property
    def of_process(self) -> int:
        """Return how many connections a process has at most, with the one of /health."""
        return self.database_connections + self.for_others + 1

    @property
    def url(self) -> "URL":
        """Return the address for SQLAlchemy."""
        return as_url(self.database_url)

    @property
    def direct_url(self) -> "URL":
        """Return the address without a pooler, which locks of a session need."""
        return as_url(self.database_unpooled_url or self.database_url)

    @property
    def is_pooled(self) -> bool:
        """Return whether a pooler gives each transaction another connection of the server."""
        return self.database_unpooled_url not in {"", self.database_url}


def require_address(value: str) -> None:
    """Refuse what is no address of a database.

    Raises:
        ValueError: The message says why, and never has the value.
    """
    if value.startswith("sqlite"):
        raise ValueError(f"names a SQLite file, but this service uses PostgreSQL; set {EXAMPLE}")
    if URL_FORM.fullmatch(value) is None:
        raise ValueError(f"must be the address of a PostgreSQL database, such as {EXAMPLE}")
    try:
        parts = urlsplit(value)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        host = parts.hostname or options.get("host")
        assert parts.port != 0
    except (ValueError, AssertionError):
        raise ValueError(
            "has a port that is no number; special characters of a password have to be "
            "percent-encoded, / as %2F, @ as %40, # as %23 and ? as %3F"
        ) from None
    if "%00" in value:  # The driver would refuse it, in words that have the password
        raise ValueError("has the character %00, which no name and no password can have")
    if parts.fragment or "/" in parts.path[1:]:
        raise ValueError(
            "has a # or a / too many; in a password write # as %23, / as %2F and ? as %3F"
        )
    if not host:
        raise ValueError(f"names no host, as in {EXAMPLE}")
    if not parts.path[1:]:
        raise ValueError(f"names no database after the host, as in {EXAMPLE}")
    if unknown := sorted(options.keys() - OPTIONS):
        name = unknown[0] if re.fullmatch(r"\w{1,40}", unknown[0]) else "that it has"
        raise ValueError(f"has an option {name} that the driver does not know; leave it out")


def as_url(address: str) -> "URL":
    """Return an address as SQLAlchemy has it, with the name of the driver."""
    from sqlalchemy import URL

    parts: SplitResult = urlsplit(address)
    return URL.create(
        "postgresql+psycopg",
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        host=parts.hostname,
        port=parts.port,
        database=unquote(parts.path[1:]),
        query=dict(parse_qsl(parts.query)),
    )
