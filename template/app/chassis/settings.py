# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Settings from environment variables and .env, checked before anything starts.

Each rule is a field validator that sees the fields declared above its own field. So one pass finds
every problem. Messages name the variable and what to set. They never repeat its value.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeAlias

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

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
        # FastAPI's tutorial prints this one, and people have pasted it ever since
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    }
)
MIN_SECRET_LENGTH: Final = 32
MIN_SECRET_SYMBOLS: Final = 8

ORIGIN_FORM: Final = re.compile(r"(https?)://(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?", re.IGNORECASE)
DIRECTIVE_FORM: Final = re.compile(r"[a-z-]+( +[!-:<-~]+)*")
KEYWORDS: Final = frozenset({"self", "none", "unsafe-inline", "unsafe-eval", "strict-dynamic"})
NAME_FORM: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
NUMBER_FORM: Final = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

JSON_FORM: Final = re.compile(r"\s*\[(?![0-9a-fA-F:]+\])")
"""Beginning of a list in JSON, but not of a list whose first entry is an IPv6 address."""

BLANK: Final = (
    r"[\s\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+"
)
"""White space and invisible characters, which do not belong at the end of a value.

One of them is the mark of a text's direction, which is copied with the text.
"""

StringList: TypeAlias = Annotated[tuple[str, ...], NoDecode]


class InProduction(NamedTuple):
    """Default of a field in production. The default that the field declares is for development."""

    default: Any


class CoreSettings(BaseSettings):
    """Settings that every service made from the template has.

    The platform sets the fields named `railway_...`. `python -m app settings` lists all fields.
    """

    model_config = SettingsConfigDict(
        # Only the last class that inherits from this one is used, and to build each takes 4 ms
        defer_build=True,
        env_file=PROJECT_ROOT / ".env",
        env_file_encoding="utf-8-sig",  # Some editors begin a file with a mark of their own
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    railway_environment_id: str = Field(default="", description="Railway's id of the environment")
    railway_environment_name: str = Field(default="", description="Its name at Railway")
    railway_private_domain: str = Field(default="", description="Name inside of Railway's network")
    railway_public_domain: str = Field(default="", description="Railway's domain of the service")
    railway_git_commit_sha: str = Field(default="", description="Commit that Railway has deployed")

    environment: Literal["development", "production"] = Field(
        default="development",
        description="development or production, which is the default on Railway",
    )
    secret_key: SecretStr = Field(
        default=SecretStr(DEVELOPMENT_SECRET),
        description="Signs what the service hands out; in production at least 32 random characters",
    )
    port: int = Field(
        default=8000, ge=1, le=65535, description="Port to listen on; the platform sets it"
    )
    backend_url: str = Field(
        default="", description="The service's public address; by default Railway's or localhost"
    )
    cors_origins: Annotated[StringList, InProduction(())] = Field(
        default=("http://localhost:3000", "http://localhost:5173"),
        description="Web pages that may call the API, with commas between; by default none in "
        "production",
    )
    allowed_hosts: Annotated[StringList, InProduction(())] = Field(
        default=("*",),
        description="Host names that are answered, separated by commas, *.example.com for all "
        "below; in production by default BACKEND_URL's and Railway's",
    )
    trusted_proxies: StringList = Field(
        default=(),
        description="Proxies whose X-Real-IP and X-Forwarded-Proto are believed, addresses or "
        "networks; by default Railway's on Railway",
    )
    docs_enabled: Annotated[bool, InProduction(False)] = Field(
        default=True, description="Pages at /docs, /redoc and /openapi.json"
    )
    content_security_policy: str = Field(
        default="",
        description="What the service's pages may load, as default-src 'self'; by default nothing, "
        "and anything where the documentation is on",
    )
    max_body_bytes: int = Field(
        default=1_048_576, ge=1, description="Largest request body in bytes"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="DEBUG, INFO, WARNING or ERROR"
    )
    log_format: Annotated[Literal["json", "text"], InProduction("json")] = Field(
        default="text", description="json or text"
    )
    log_lines_per_second: int = Field(
        default=400,
        ge=0,
        le=100_000,
        description="Lines a second that all workers write, beside 100 warnings; further requests "
        "are counted",
    )
    workers: int = Field(
        default=answers.WORKERS, ge=1, le=16, description="Worker processes, 1 to 16"
    )
    app_uid: int | None = Field(
        default=None,
        ge=1,
        lt=2**32 - 1,
        description="User id to become when started as root; the image sets it",
    )
    app_version: str = Field(
        default="unreleased",
        description="What /health shows as version; by default the deployed commit on Railway",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the white space off every value, because a pasted one often has a line break.

        This is done at the source, so that it applies to every field, also to those of a subclass.
        It also makes a value of white space alone count as not set.
        """
        for source in (env_settings, dotenv_settings):
            assert isinstance(source, EnvSettingsSource), "both are, as pydantic-settings has them"
            stripped = {name: strip(value or "") for name, value in source.env_vars.items()}
            source.env_vars = {name: value for name, value in stripped.items() if value}
        return init_settings, env_settings, dotenv_settings, file_secret_settings

    @model_validator(mode="before")
    @classmethod
    def derive_defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in what the platform knows. A variable that was set always wins."""
        values = dict(given)
        if values.get("railway_environment_id"):
            values.setdefault("environment", "production")
            values.setdefault("trusted_proxies", EDGE_NETWORK)
        if str(values.get("environment", "development")).lower() != "development":
            for name, field in cls.model_fields.items():
                for one in field.metadata:
                    if isinstance(one, InProduction):
                        values.setdefault(name, one.default)
        if domain := values.get("railway_public_domain"):
            values.setdefault("backend_url", f"https://{domain}")
        if commit := values.get("railway_git_commit_sha"):
            values.setdefault("app_version", commit)
        return values

    @field_validator("log_level", "log_format", "environment", mode="before")
    @classmethod
    def ignore_case(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        return value.upper() if info.field_name == "log_level" else value.lower()

    @field_validator("cors_origins", "allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def split_list(cls, value: object) -> object:
        """Accept `a, b` as well as `["a", "b"]`."""
        if not isinstance(value, str):
            return value
        try:
            parts = json.loads(value) if JSON_FORM.match(value) else value.split(",")
        except ValueError:
            raise ValueError("looks like JSON but is not; write a comma-separated list") from None
        parts = [strip(part) if isinstance(part, str) else part for part in parts]
        return tuple(part for part in parts if part != "")

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

    @field_validator("content_security_policy")
    @classmethod
    def policy_is_directives(cls, value: str) -> str:
        directives = [part.strip() for part in value.split(";") if part.strip()]
        if not all(DIRECTIVE_FORM.fullmatch(directive) for directive in directives):
            raise ValueError("must be directives only, such as default-src 'self'; img-src * data:")
        if KEYWORDS.intersection(word for directive in directives for word in directive.split()):
            raise ValueError("needs quotes around its keywords: 'self', 'none', 'unsafe-inline'")
        return "; ".join(directives)

    @field_validator("backend_url")
    @classmethod
    def backend_url_is_an_origin(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            port = info.data.get("port", 8000)
            return "" if is_production(info) else f"http://localhost:{port}"
        if (origin := as_origin(value)) is None:
            raise ValueError(
                "must be scheme and host, such as https://api.example.com, in ASCII as a browser "
                "sends it"
            )
        return origin

    @field_validator("cors_origins")
    @classmethod
    def origins_are_listed(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "*" in value and is_production(info):
            raise ValueError("must list the origins in production instead of *")
        return as_sent(
            value,
            as_origin,
            "no browser sends what entry {} says; write each as "
            "https://app.example.com: no path, no wildcard, and in ASCII (xn--...)",
        )

    @field_validator("allowed_hosts")
    @classmethod
    def hosts_are_names(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        hosts = as_sent(
            value,
            as_host_pattern,
            "no browser asks for what entry {} says; write each as "
            "api.example.com or *.example.com: no scheme, no port, and in ASCII (xn--...)",
        )
        known = info.data
        on_railway = bool(known.get("railway_environment_id"))
        if not hosts:
            backend = ORIGIN_FORM.fullmatch(known.get("backend_url", ""))
            hosts = (*LOOPBACK_HOSTS, backend[2] if backend else "")
            if on_railway:
                hosts = (*hosts, "*.up.railway.app", known.get("railway_private_domain", ""))
        if on_railway:
            hosts = (*hosts, HEALTHCHECK_HOST)
        return tuple(dict.fromkeys(host.lower() for host in hosts if host))

    @field_validator("trusted_proxies")
    @classmethod
    def proxies_are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            networks = [ipaddress.ip_network(network) for network in value]
        except ValueError:
            raise ValueError(
                "must list addresses or networks, such as 100.64.0.0/10 or 172.18.0.2"
            ) from None
        # An IPv4 peer counts as IPv4, whatever the socket shows
        if any(getattr(network.network_address, "ipv4_mapped", None) for network in networks):
            raise ValueError("must list IPv4 addresses without ::ffff: before them")
        return value

    @classmethod
    def load(cls, **sources: Any) -> Self:
        """Read the environment and .env.

        Args:
            sources: `_env_file=None` to leave .env out.

        Raises:
            ConfigurationError: There are problems. It has one line for each.
        """
        try:
            settings = cls(**sources)
        except UnicodeDecodeError:
            raise ConfigurationError([".env: is not UTF-8 text; save it as that"]) from None
        except ValidationError as error:
            raise ConfigurationError(
                [describe(dict(problem)) for problem in error.errors(include_input=False)]
            ) from None
        # Two libraries may refuse the same variable
        if refused := list(dict.fromkeys(settings.refusals())):
            raise ConfigurationError(refused)
        return settings

    @property
    def on_railway(self) -> bool:
        return bool(self.railway_environment_id)

    @property
    def production(self) -> bool:
        return self.environment == "production"

    @property
    def bind(self) -> str:
        """Return the address of every interface, over IPv6 and IPv4 if the machine has both."""
        host = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104, meant
        return f"{host}:{self.port}"

    def refusals(self) -> list[str]:
        """Return the problems of variables that are no setting, one line each."""
        return []

    def warnings(self) -> list[str]:
        """Return what is allowed but probably not meant, one line each."""
        found = []
        if self.production and not self.backend_url:
            found.append(
                "BACKEND_URL: not set and no public domain is known; "
                "create one with `railway domain`, or set it"
            )
        return found


ChassisSettings = CoreSettings
"""Name that services made before 0.5.0 import from here."""


def is_production(info: ValidationInfo) -> bool:
    """Return whether production's rules apply, which they also do in a misspelt environment."""
    return bool(info.data.get("environment", "production") == "production")


def strip(value: str) -> str:
    """Return the value without the white space around it."""
    return re.sub(rf"^{BLANK}|{BLANK}\Z", "", value)


def as_origin(value: str) -> str | None:
    """Return an origin as a browser sends it, or None if no browser could send it.

    A browser writes scheme and host in lower case and ASCII, and addresses in their shortest form.
    It leaves the scheme's own port out (https://url.spec.whatwg.org/#host-serializing).
    """
    match = ORIGIN_FORM.fullmatch(value.rstrip("/"))
    host = match and as_host(match[2])
    if match is None or host is None:
        return None
    scheme = match[1].lower()
    port = int(match[3] or DEFAULT_PORTS[scheme])
    if not 0 < port < 65536:
        return None
    return f"{scheme}://{host}" + (f":{port}" if port != DEFAULT_PORTS[scheme] else "")


def as_sent(
    values: tuple[str, ...], form: Callable[[str], str | None], problem: str
) -> tuple[str, ...]:
    """Return each entry once and as a browser sends it.

    Raises:
        ValueError: No browser could send an entry, whose number the message has.
    """
    found: dict[str, None] = {}
    for number, value in enumerate(values, 1):
        if (sent := value if value == "*" else form(value)) is None:
            raise ValueError(problem.format(number))
        found[sent] = None
    return tuple(found)


def as_host(value: str) -> str | None:
    """Return a host as a browser sends it, or None if it is no name and no address."""
    host = value.lower()
    try:
        if host.startswith("["):
            address = ipaddress.IPv6Address(host.strip("[]"))
            # Browsers write an address with a zone, or with an IPv4 address in it, otherwise
            return None if address.scope_id or address.ipv4_mapped else f"[{address}]"
        if NUMBER_FORM.fullmatch(host):  # A browser takes this for an address
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None
    return host if NAME_FORM.fullmatch(host) else None


def as_host_pattern(value: str) -> str | None:
    """Return a host, with `*.` before it if the value has that, as a browser sends it."""
    below = value.removeprefix("*.")
    host = as_host(below)
    if host is None or below == value:
        return host
    return f"*.{host}" if NAME_FORM.fullmatch(host) and not NUMBER_FORM.fullmatch(host) else None


def describe(problem: Mapping[str, Any]) -> str:
    """Return one line for one of pydantic's errors, with the variable's name and what is wrong."""
    name = "_".join(str(part) for part in problem["loc"][:1]).upper()
    if problem["type"] == "missing":
        return f"{name}: is required; set it"
    if problem["type"] == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    message = str(problem["msg"])
    return f"{name}: {message[:1].lower()}{message[1:]}"
