# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Settings from environment variables and .env, checked before anything starts.

Each rule is a field validator that sees the fields declared above its own, so that
one pass finds every problem. Messages name the variable and what to set; they never
repeat its value.
"""

import ipaddress
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.chassis import answers
from app.chassis.errors import ConfigurationError

PROJECT_ROOT: Final = Path(__file__).resolve().parents[2]

HEALTHCHECK_HOST: Final = "healthcheck.railway.app"
"""Host header of Railway's health check (docs.railway.com/deployments/healthchecks)."""

EDGE_NETWORK: Final = "100.64.0.0/10"
"""Addresses from which Railway's edge proxy connects."""

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")

DEVELOPMENT_SECRET: Final = "development-only-secret-key-0123456789"  # noqa: S105
EXAMPLE_SECRETS: Final = frozenset(
    {
        DEVELOPMENT_SECRET,
        # printed in FastAPI's tutorial, and pasted from there ever since
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    }
)
MIN_SECRET_LENGTH: Final = 32
MIN_SECRET_SYMBOLS: Final = 8

DATABASE_URL_FORM: Final = re.compile(
    r"sqlite(\+pysqlite|\+aiosqlite)?:///([^?#\x00\ud800-\udfff]+)"
)
HOST_FORM: Final = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9a-fA-F:]+\]")

StringList: TypeAlias = Annotated[tuple[str, ...], NoDecode]


class ChassisSettings(BaseSettings):
    """What every service made from the template can be told.

    Fields named `railway_...` are set by the platform; the others are listed in
    .env.example and in README.md.
    """

    model_config = SettingsConfigDict(
        env_file=PROJECT_ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    railway_environment_id: str = ""
    railway_environment_name: str = ""
    railway_private_domain: str = ""
    railway_public_domain: str = ""
    railway_git_commit_sha: str = ""
    railway_volume_mount_path: str = ""

    environment: Literal["development", "production"] = "development"
    secret_key: SecretStr = SecretStr(DEVELOPMENT_SECRET)
    volume_path: str = ""
    database_url: str = "sqlite:///data/app.db"
    port: int = Field(default=8000, ge=1, le=65535)
    backend_url: str = ""
    cors_origins: StringList = ()
    allowed_hosts: StringList = ()
    trusted_proxies: StringList = ()
    docs_enabled: bool = False
    max_body_bytes: int = Field(default=1_048_576, ge=1)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"
    log_lines_per_second: int = Field(default=400, ge=0, le=100_000)
    workers: int = Field(default=answers.WORKERS, ge=1, le=16)
    app_uid: int | None = Field(default=None, ge=1)
    app_version: str = ""
    lock_timeout: float = Field(default=120, ge=0)
    sqlite_synchronous: Literal["FULL", "NORMAL"] = "FULL"
    min_free_bytes: int = Field(default=16 * 1024 * 1024, ge=0)
    low_free_bytes: int = Field(default=64 * 1024 * 1024, ge=0)

    @model_validator(mode="before")
    @classmethod
    def derive_defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fill what the platform knows; a variable that was set always wins."""
        values = dict(given)
        on_railway = bool(values.get("railway_environment_id"))
        production = (
            values.setdefault("environment", "production" if on_railway else "development")
            != "development"
        )
        values.setdefault("docs_enabled", not production)
        values.setdefault("log_format", "json" if production else "text")
        if on_railway:
            volume = values.get("railway_volume_mount_path")
        else:
            volume = values.get("volume_path")
        if volume:
            values.setdefault("database_url", f"sqlite:///{volume}/app.db")
        if domain := values.get("railway_public_domain"):
            values.setdefault("backend_url", f"https://{domain}")
        if not production:
            values.setdefault("cors_origins", "http://localhost:3000,http://localhost:5173")
        if on_railway:
            values.setdefault("trusted_proxies", EDGE_NETWORK)
        values.setdefault("app_version", values.get("railway_git_commit_sha") or "unreleased")
        return values

    @field_validator("log_level", "log_format", "sqlite_synchronous", "environment", mode="before")
    @classmethod
    def ignore_case(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        upper = info.field_name in {"log_level", "sqlite_synchronous"}
        return value.upper() if upper else value.lower()

    @field_validator("cors_origins", "allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def split_list(cls, value: object) -> object:
        """Accept `a, b` as well as `["a", "b"]`."""
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith("["):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        try:
            return tuple(json.loads(value))
        except (ValueError, TypeError):
            raise ValueError("looks like JSON but is not; write a comma-separated list") from None

    @field_validator("secret_key")
    @classmethod
    def secret_is_strong(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        secret = value.get_secret_value()
        strong = (
            len(secret) >= MIN_SECRET_LENGTH
            and len(set(secret)) >= MIN_SECRET_SYMBOLS
            and secret not in EXAMPLE_SECRETS
        )
        if is_production(info) and not strong:
            raise ValueError(
                f"needs at least {MIN_SECRET_LENGTH} random characters in production; "
                "set it to the output of `openssl rand -hex 32`"
            )
        return value

    @field_validator("volume_path")
    @classmethod
    def volume_is_absolute(cls, value: str) -> str:
        if value and not os.path.isabs(value):
            raise ValueError("must be an absolute path, such as /data")
        return value

    @field_validator("database_url")
    @classmethod
    def database_is_kept(cls, value: str, info: ValidationInfo) -> str:
        match = DATABASE_URL_FORM.fullmatch(value)
        if match is None or match[2] == ":memory:":
            raise ValueError(
                "must name a SQLite file without options, such as sqlite:////data/app.db"
            )
        if not is_production(info):
            return value
        on_railway = bool(info.data.get("railway_environment_id"))
        volume = info.data.get("railway_volume_mount_path" if on_railway else "volume_path")
        if on_railway and not volume:
            raise ValueError(
                "no volume is attached, so every deploy would lose the data; attach one: "
                "`railway volume add --mount-path /data`"
            )
        advice = f"set it to sqlite:///{volume or '/data'}/app.db"
        path = os.path.normpath(match[2])
        if not os.path.isabs(path):
            raise ValueError(
                "must name an absolute path on the volume in production; "
                f"{advice}, or set VOLUME_PATH"
            )
        if volume and not Path(path).is_relative_to(os.path.normpath(volume)):
            raise ValueError(f"is not on the volume, so every deploy would lose the data; {advice}")
        return value

    @field_validator("backend_url")
    @classmethod
    def backend_url_is_an_origin(cls, value: str, info: ValidationInfo) -> str:
        if not value and not is_production(info):
            return f"http://localhost:{info.data.get('port', 8000)}"
        value = value.rstrip("/")
        if value and not is_origin(value):
            raise ValueError("must be scheme and host, such as https://api.example.com")
        return value

    @field_validator("cors_origins")
    @classmethod
    def origins_are_listed(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        origins = tuple(origin.rstrip("/") for origin in value)
        if "*" in origins and is_production(info):
            raise ValueError("must list the origins in production instead of *")
        if not all(origin == "*" or is_origin(origin) for origin in origins):
            raise ValueError(
                "must list origins of the form https://app.example.com, without a path"
            )
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def hosts_are_names(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not all(HOST_FORM.fullmatch(host) for host in value):
            raise ValueError("must list host names without scheme or port, such as api.example.com")
        known = info.data
        if not value:
            if not is_production(info):
                return ("*",)
            backend = urlsplit(known.get("backend_url", "")).hostname
            value = (*LOOPBACK_HOSTS, *([backend] if backend else []))
            if known.get("railway_environment_id"):
                private = known.get("railway_private_domain")
                value = (*value, "*.up.railway.app", *([private] if private else []))
        if known.get("railway_environment_id"):
            value = (*value, HEALTHCHECK_HOST)
        return tuple(dict.fromkeys(host.lower() for host in value))

    @field_validator("trusted_proxies")
    @classmethod
    def proxies_are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for network in value:
                ipaddress.ip_network(network)
        except ValueError:
            raise ValueError(
                "must list addresses or networks, such as 100.64.0.0/10 or 172.18.0.2"
            ) from None
        return value

    @classmethod
    def load(cls, **sources: Any) -> Self:
        """Read the environment and .env.

        Args:
            sources: `_env_file=None` to leave .env out.

        Raises:
            ConfigurationError: With one line for every problem.
        """
        try:
            return cls(**sources)
        except UnicodeDecodeError:
            raise ConfigurationError([".env: is not UTF-8 text; save it as that"]) from None
        except ValidationError as error:
            raise ConfigurationError(
                [describe(dict(problem)) for problem in error.errors(include_input=False)]
            ) from None

    @property
    def on_railway(self) -> bool:
        return bool(self.railway_environment_id)

    @property
    def production(self) -> bool:
        return self.environment == "production"

    @property
    def volume(self) -> Path | None:
        """Where the volume is mounted, or None where there is none (a laptop)."""
        path = self.railway_volume_mount_path if self.on_railway else self.volume_path
        return Path(path) if path else None

    @property
    def database_path(self) -> Path:
        """The database file; a relative path counts from the project's root."""
        _, _, path = self.database_url.partition(":///")
        return Path(os.path.normpath(PROJECT_ROOT / path))

    @property
    def bind(self) -> str:
        """Every interface, over IPv6 and IPv4 where the machine has both."""
        host = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104, meant
        return f"{host}:{self.port}"

    def warnings(self) -> list[str]:
        """What is allowed but probably not meant, one line each."""
        found = []
        if self.production and not self.backend_url:
            found.append(
                "BACKEND_URL: not set and no public domain is known; "
                "create one with `railway domain`, or set it"
            )
        if self.on_railway and self.volume is None:
            found.append("DATABASE_URL: no volume is attached; the next deploy loses the data")
        return found


def is_production(info: ValidationInfo) -> bool:
    """Whether to apply production's rules; also when the environment is misspelt."""
    return bool(info.data.get("environment", "production") == "production")


def is_origin(value: str) -> bool:
    """Whether the value is scheme, host and perhaps a port, and nothing more."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return False
    authority = parts.hostname if ":" not in parts.hostname else f"[{parts.hostname}]"
    if port is not None:
        authority = f"{authority}:{port}"
    return value.lower() == f"{parts.scheme}://{authority}"


def describe(problem: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors: the variable's name and what is wrong."""
    name = "_".join(str(part) for part in problem["loc"][:1]).upper()
    if problem["type"] == "missing":
        return f"{name}: is required; set it"
    if problem["type"] == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    message = str(problem["msg"])
    return f"{name}: {message[:1].lower()}{message[1:]}"
