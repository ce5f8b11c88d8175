"""What production asks for, and that every problem is told at once."""

import pytest

from app.chassis import check
from app.chassis.cli import main
from app.chassis.errors import ConfigurationError
from app.chassis.testing import required_variables
from app.settings import Settings

from ..production import RAILWAY, REQUIRED
from .conftest import NAMES

CLIENTS = {f"{name.upper()}_CLIENT_{part}" for name in NAMES for part in ("ID", "SECRET")}


@pytest.fixture(autouse=True)
def railway(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (RAILWAY | REQUIRED).items():
        monkeypatch.setenv(name, value)


def problems() -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert "hunter2" not in str(caught.value)
    assert all("\n" not in line for line in caught.value.problems)
    return dict(line.split(": ", 1) for line in caught.value.problems)


def test_everything_that_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().production
    for name in CLIENTS | {"RAILWAY_PUBLIC_DOMAIN"}:
        monkeypatch.delenv(name)
    for name in NAMES:
        monkeypatch.setenv(f"{name.upper()}_ISSUER", "http://hunter2.example")
    monkeypatch.setenv("ALLOWED_EMAILS", "hunter2")
    monkeypatch.setenv("SESSION_MAX_AGE", "0")

    found = problems()

    issuers = {f"{name.upper()}_ISSUER" for name in NAMES}
    assert found.keys() == {*CLIENTS, *issuers, "ALLOWED_EMAILS", "BACKEND_URL", "SESSION_MAX_AGE"}
    assert "`railway domain`" in found["BACKEND_URL"]


def test_the_start_ends_with_78_and_a_line_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in CLIENTS:
        monkeypatch.delenv(name)

    assert main(["start"]) == 78

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"Configuration: {len(CLIENTS)} problems"
    assert {line.split(":")[0].strip() for line in lines[1:]} == CLIENTS
    assert all(line.endswith("(README.md, Sign-in)") for line in lines[1:])


@pytest.mark.parametrize("url", ["http://api.example.com", ""])
def test_people_have_to_come_back_by_https(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("RAILWAY_PUBLIC_DOMAIN", "")
    monkeypatch.setenv("BACKEND_URL", url)

    found = problems()

    assert found.keys() == {"BACKEND_URL"}
    assert "set it to https://..." in found["BACKEND_URL"]


@pytest.mark.parametrize(
    "value",
    [
        "*",
        "hunter2",
        "hunter2@",
        "@",
        "a@b@hunter2.com",
        "ann hunter2@x.com",
        "häns@x.de",
        "*@x.com",
        "mailto:ann@x.com",
        "@x.com.",
    ],
)
def test_what_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALLOWED_EMAILS", f"ann@example.com, {value}")

    assert problems().keys() == {"ALLOWED_EMAILS"}


@pytest.mark.parametrize(
    "value",
    [
        "hunter2",
        "ftp://hunter2.example",
        "https://",
        "https://[hunter2",
        "https://a:hunter2@b.example",
        "https://a.example?hunter2",
        "https://a.example#hunter2",
        "https://a.example/hunter2 x",
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_issuer_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"{name.upper()}_ISSUER", value)

    assert problems().keys() == {f"{name.upper()}_ISSUER"}


@pytest.mark.parametrize("name", NAMES)
def test_a_laptop_needs_no_client_and_takes_no_half_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in {*RAILWAY, *REQUIRED} - required_variables(Settings).keys():
        monkeypatch.delenv(variable)
    assert not Settings.load().production

    monkeypatch.setenv(f"{name.upper()}_ISSUER", "http://localhost:9400/")
    monkeypatch.setenv(f"{name.upper()}_CLIENT_ID", "mine")
    assert problems().keys() == {f"{name.upper()}_CLIENT_SECRET"}

    monkeypatch.setenv(f"{name.upper()}_CLIENT_SECRET", " pasted\n")
    settings = Settings.load()
    assert getattr(settings, f"{name}_client_secret").get_secret_value() == "pasted"
    assert getattr(settings, f"{name}_issuer") == "http://localhost:9400"


def test_the_check_shows_what_the_providers_have_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.chassis.assembly.check_backup", lambda _: [])
    variables = RAILWAY | REQUIRED

    found = {finding.id: finding for finding in check.run(variables)}
    for name in NAMES:
        verdict = found[f"sign-in.{name}"].verdict
        assert f"https://api.up.railway.app/auth/{name}/callback" in verdict
    assert found["sign-in.admitted"].verdict == "everyone who has an account there"
    assert found["sign-in.admitted"].status == "warning"
    listed = {"ALLOWED_EMAILS": "@example.com"}
    found = {finding.id: finding for finding in check.run(variables | listed)}
    assert found["sign-in.admitted"] == ("sign-in.admitted", "ok", "@example.com", "")

    laptop = required_variables(Settings) | {"ENVIRONMENT": "development"}
    found = {finding.id: finding for finding in check.run(laptop)}
    assert {found[f"sign-in.{name}"].status for name in NAMES} == {"skipped"}
    assert found["sign-in.admitted"].status == "ok"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("https_proxy", "ftp://user:hunter2@127.0.0.1"),
        ("HTTP_PROXY", "127.0.0.1:hunter2"),
        ("SSL_CERT_FILE", "/hunter2.pem"),
        ("SSL_CERT_FILE", __file__),
    ],
)
def test_a_proxy_that_no_client_takes_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for variable in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:3128")
    assert Settings.load().production

    monkeypatch.setenv(name, value)
    assert problems().keys() == {name}
