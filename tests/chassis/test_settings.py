"""What is derived, what is refused, and that the documents list every variable."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from app.chassis.errors import ConfigurationError
from app.chassis.settings import EXAMPLE_SECRETS, PROJECT_ROOT, CoreSettings
from app.settings import Settings

from .production import DATABASE_URL, RAILWAY, REQUIRED

SIGN_IN = "session_max_age" in Settings.model_fields


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(monkeypatch, **variables)
    return caught.value.problems


def on_railway(**variables: str) -> dict[str, str]:
    return RAILWAY | REQUIRED | variables


def test_a_laptop_needs_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch)

    assert settings.environment == "development"
    assert settings.backend_url == "http://localhost:8000"
    assert settings.allowed_hosts == ("*",)
    assert settings.docs_enabled
    assert settings.log_format == "text"


def test_the_declared_defaults_are_the_effective_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch)

    # The one address that depends on another setting
    declared = {
        name: field.default
        for name, field in CoreSettings.model_fields.items()
        if name != "backend_url"
    }
    assert {name: getattr(settings, name) for name in declared} == declared


def test_a_default_that_a_service_declares_anew_holds_in_production_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(Settings):
        docs_enabled: bool = True
        log_format: Literal["json", "text"] = "text"

    for name, value in on_railway().items():
        monkeypatch.setenv(name, value)

    settings = Own.load()

    assert (settings.docs_enabled, settings.log_format) == (True, "text")


def test_development_may_begin_with_a_capital(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, ENVIRONMENT="Development")

    assert dumped(settings) == dumped(load(monkeypatch, ENVIRONMENT="development"))
    assert settings.docs_enabled


def test_railway_fills_in_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **on_railway())

    assert settings.environment == "production"
    assert settings.backend_url == "https://api.up.railway.app"
    assert settings.app_version == "c0ffee"
    assert settings.cors_origins == ()
    assert not settings.docs_enabled
    assert settings.log_format == "json"
    assert settings.trusted_proxies == ("100.64.0.0/10",)
    assert {"healthcheck.railway.app", "api.up.railway.app", "api.railway.internal"} <= set(
        settings.allowed_hosts
    )
    assert not any("BACKEND_URL" in text or "DATABASE_URL" in text for text in settings.warnings())


def test_a_set_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        **on_railway(
            BACKEND_URL="https://api.example.com/",
            APP_VERSION="1.2",
            DOCS_ENABLED="true",
            ALLOWED_HOSTS='["API.example.com"]',
        ),
    )

    assert settings.backend_url == "https://api.example.com"
    assert settings.app_version == "1.2"
    assert settings.docs_enabled
    # without the health check's host, no deploy would ever become healthy
    assert settings.allowed_hosts == ("api.example.com", "healthcheck.railway.app")
    assert load(monkeypatch, ENVIRONMENT="Development").environment == "development"


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, DATABASE_URL="", PORT="").port == 8000


PLAIN = {
    "DATABASE_URL": DATABASE_URL,
    "CORS_ORIGINS": '["https://a.example","https://b.example"]',
    "ALLOWED_HOSTS": "api.example.com,*.example.com",
    "LOG_LEVEL": "DEBUG",
    "WORKERS": "3",
    "DOCS_ENABLED": "true",
}
AROUND = ("{}\n", "\t {}\r\n", "\u00a0{}\u3000", "\ufeff{}\u200b", "\u202a{}\u202c\x1b", "\u200e{}")


def dumped(settings: Settings) -> dict[str, Any]:
    secret = settings.secret_key.get_secret_value()
    return settings.model_dump() | {"secret_key": secret}


@pytest.mark.parametrize("around", AROUND)
def test_white_space_around_a_value_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, around: str
) -> None:
    plain = dumped(load(monkeypatch, **on_railway(**PLAIN)))
    pasted = {name: around.format(value) for name, value in on_railway(**PLAIN).items()}
    pasted["CORS_ORIGINS"] = '["https://a.example ", " https://b.example", ""]'

    assert dumped(load(monkeypatch, **pasted)) == plain

    lines = "".join(f"{name}='{value}'\n" for name, value in pasted.items())
    (tmp_path / ".env").write_text(lines, encoding="utf-8")
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
    for name in pasted:
        monkeypatch.delenv(name)
    assert dumped(Settings.load()) == plain


def test_white_space_alone_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = Settings.model_fields.items()
    blank = {name.upper(): " \n" for name, field in fields if not field.is_required()}

    assert dumped(load(monkeypatch, **blank)) == dumped(Settings.load())


def test_a_setting_of_the_service_s_own_has_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Settings):
        token: SecretStr
        names: tuple[str, ...] = ()
        limit: int | None = None

    monkeypatch.setenv("TOKEN", "abc\n")
    monkeypatch.setenv("NAMES", '\n["a"]\n')
    monkeypatch.setenv("LIMIT", "  ")
    own = Own.load()
    assert (own.token.get_secret_value(), own.names, own.limit) == ("abc", ("a",), None)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://App.Example.org", "https://app.example.org"),
        ("HTTPS://app.example.org/", "https://app.example.org"),
        ("https://app.example.org:443", "https://app.example.org"),
        ("http://app.example.org:080", "http://app.example.org"),
        ("https://app.example.org:8443", "https://app.example.org:8443"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("https://[2001:DB8::1]", "https://[2001:db8::1]"),
        ("https://XN--MNCHEN-3YA.example", "https://xn--mnchen-3ya.example"),
    ],
)
def test_an_origin_is_kept_as_a_browser_sends_it(
    monkeypatch: pytest.MonkeyPatch, written: str, sent: str
) -> None:
    settings = load(monkeypatch, CORS_ORIGINS=f"{written},{sent}", BACKEND_URL=written)
    assert settings.cors_origins == (sent,)
    assert settings.backend_url == sent


NEVER_SENT = (
    "https://*.example.org",
    "https://*",
    "https://app.*.org",
    "*.example.org",
    "app.example.org",
    "null",
    "https://app.example.org.",
    "https://app..example.org",
    "https://.example.org",
    "https://m\u00fcnchen.example",
    "https://ann@app.example.org",
    "https://ann:pw@app.example.org",
    "https://app.example.org/path",
    "https://app.example.org?a=1",
    "https://app.example.org#top",
    "https://app.exam\nple.org",
    "https://app example.org",
    "https://app%2eexample.org",
    "https://app.example.org:0",
    "https://app.example.org:65536",
    "https://app.example.org:https",
    "http://127.1:3000",
    "http://0x7f.0.0.1",
    "http://127.0.0.01",
    "http://2130706433",
    "http://[::ffff:127.0.0.1]",
    "http://[fe80::1%25eth0]",
    "http://[::1",
    "http://::1",
    "ftp://app.example.org",
    "//app.example.org",
    "https:app.example.org",
    "https://",
)


@pytest.mark.parametrize("origin", NEVER_SENT)
def test_an_origin_that_no_browser_sends_is_refused(
    monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    (found,) = problems(monkeypatch, CORS_ORIGINS=f"https://a.example,{origin}")
    assert found.startswith("CORS_ORIGINS: ")
    assert "entry 2" in found
    (found,) = problems(monkeypatch, CORS_ORIGINS="", BACKEND_URL=origin)
    assert found.startswith("BACKEND_URL: ")


@pytest.mark.parametrize(
    ("written", "sent"),
    [("API.Example.org", "api.example.org"), ("[0:0::1]", "[::1]"), ("*.Example.org",) * 2],
)
def test_a_host_is_kept_as_a_browser_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, written: str, sent: str
) -> None:
    assert load(monkeypatch, ALLOWED_HOSTS=written).allowed_hosts == (sent.lower(),)


@pytest.mark.parametrize(
    "host",
    [
        "api.*.org",
        "*api.example.org",
        "*.",
        "*.*.example.org",
        "api.example.org.",
        "api.example.org/",
        "[::1]:8000",
        "::1",
        "127.1",
        "*.0.0.1",
        "m\u00fcnchen.example",
    ],
)
def test_a_host_that_no_browser_asks_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    (found,) = problems(monkeypatch, ALLOWED_HOSTS=host)
    assert found.startswith("ALLOWED_HOSTS: ")


def test_the_public_address_is_answered_by_its_own_host(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **on_railway(BACKEND_URL="https://[2001:db8::1]:8443"))
    assert "[2001:db8::1]" in settings.allowed_hosts


@pytest.mark.parametrize("proxy", ["::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "10.0.0.1:80", "edge"])
def test_a_proxy_that_no_peer_can_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    (found,) = problems(monkeypatch, TRUSTED_PROXIES=proxy)
    assert found.startswith("TRUSTED_PROXIES: ")


@pytest.mark.skipif(SIGN_IN, reason="people who sign in come back to it")
def test_a_public_domain_may_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **on_railway(RAILWAY_PUBLIC_DOMAIN=""))

    assert settings.backend_url == ""
    assert "*.up.railway.app" in settings.allowed_hosts
    assert [line for line in settings.warnings() if line.startswith("BACKEND_URL: ")]


@pytest.mark.parametrize(
    "text",
    [
        "https://a.example, https://b.example:8443",
        '["https://a.example/", "https://b.example:8443"]',
    ],
)
def test_lists_come_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert load(monkeypatch, CORS_ORIGINS=text).cors_origins == (
        "https://a.example",
        "https://b.example:8443",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENVIRONMENT", "hunter2"),
        ("SECRET_KEY", "hunter2"),
        ("SECRET_KEY", "a" * 64),
        *(("SECRET_KEY", secret) for secret in sorted(EXAMPLE_SECRETS)),
        ("DATABASE_URL", "mysql://user:hunter2@db/app"),
        ("BACKEND_URL", "hunter2.example.com"),
        ("BACKEND_URL", "https://api.example.com/hunter2"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "https://app.example/hunter2"),
        ("CORS_ORIGINS", "[broken"),
        ("ALLOWED_HOSTS", "https://hunter2.example.com"),
        ("ALLOWED_HOSTS", "api.example.com:443"),
        ("TRUSTED_PROXIES", "10.0.0.0/99"),
        ("LOG_LEVEL", "hunter2"),
        ("LOG_FORMAT", "hunter2"),
        ("WORKERS", "0"),
        ("WORKERS", "17"),
        ("WORKERS", "hunter2"),
        ("PORT", "$PORT"),
        ("PORT", "70000"),
        ("PORT", " 80 00"),
        ("MAX_BODY_BYTES", "0"),
        ("LOCK_TIMEOUT", "-1"),
        ("DOCS_ENABLED", "hunter2"),
        ("CONTENT_SECURITY_POLICY", "hunter2"),
        ("CONTENT_SECURITY_POLICY", "default-src self"),
        ("CONTENT_SECURITY_POLICY", "Content-Security-Policy: default-src *"),
        ("CONTENT_SECURITY_POLICY", "default-src 'self'\nX-Header: hunter2"),
        ("CONTENT_SECURITY_POLICY", "default-src https://b\u00fccher.example"),
    ],
)
def test_a_bad_value_is_named_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    found = problems(monkeypatch, **on_railway(**{name: value}))

    assert [line.partition(":")[0] for line in found] == [name]
    assert "hunter2" not in found[0]
    assert "\n" not in found[0]


def test_a_bad_port_is_the_only_problem_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = problems(monkeypatch, PORT="hunter2")
    assert found.startswith("PORT: ")


def test_a_file_that_is_not_text_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_bytes("LOG_LEVEL=größer".encode("latin-1"))
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")

    assert problems(monkeypatch) == [".env: is not UTF-8 text; save it as that"]


def test_every_problem_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problems(
        monkeypatch,
        **on_railway(
            SECRET_KEY="hunter2",
            DATABASE_URL="mysql://user:hunter2@db/app",
            CORS_ORIGINS="*",
            WORKERS="many",
            ENVIRONMENT="prod",
        ),
    )

    names = {line.partition(":")[0] for line in found}
    assert names == {"SECRET_KEY", "DATABASE_URL", "CORS_ORIGINS", "WORKERS", "ENVIRONMENT"}


def documented(text: str, pattern: str) -> list[str]:
    return re.findall(pattern, text, re.MULTILINE)


PEOPLE_SET = ["SECRET_KEY", "BACKEND_URL", "ALLOWED_HOSTS", "CORS_ORIGINS", "DATABASE_URL"]


def test_the_documents_list_every_variable() -> None:
    expected = [name.upper() for name in Settings.model_fields if not name.startswith("railway_")]
    runbook = (PROJECT_ROOT / "RUNBOOK.md").read_text(encoding="utf-8")
    rows = [
        name
        for names in documented(runbook, r"^\| ((?:`[A-Z_]+`(?:, )?)+) \|")
        for name in documented(names, r"[A-Z_]+")
    ]

    # The runbook has those that people set, and `python -m app settings` all
    assert len(rows) == len(set(rows)) > 10
    assert set(rows) <= set(expected)
    assert set(PEOPLE_SET) <= set(rows)


def test_the_example_file_has_settings_only() -> None:
    """It has those that people set. The command `settings` lists all."""
    example = (PROJECT_ROOT / ".env.example").read_text(encoding="utf-8")

    named = documented(example, r"^([A-Z_]+)=")
    assert {"ENVIRONMENT", "SECRET_KEY", "WORKERS"} <= set(named)
    assert {name.lower() for name in named} <= Settings.model_fields.keys()
    assert len(set(named)) == len(named)


def test_the_example_file_works_as_it_is() -> None:
    settings: dict[str, Any] = {"_env_file": PROJECT_ROOT / ".env.example"}
    copied = Settings(**settings)

    assert copied.model_dump() == Settings.load().model_dump()
