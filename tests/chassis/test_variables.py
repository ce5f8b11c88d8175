"""The list of variables that `python -m app settings` prints."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AliasChoices, Field, SecretStr

from app.chassis import variables
from app.chassis.cli import main
from app.chassis.settings import InProduction
from app.settings import Settings

OWN = "app-secret-value"


class Own(Settings):
    """A service's settings as people write them."""

    greeting: str = Field(default="Hello", description="Opens every answer")
    api_key: SecretStr = Field(default=SecretStr(OWN), description="Key of the partner's API")
    tokens: tuple[SecretStr, ...] | None = (SecretStr(OWN),)
    partner: str
    other: int = Field(default=3, validation_alias="elsewhere")
    several: list[str] = Field(default=["a", "b"], validation_alias=AliasChoices("first", "last"))
    made: list[str] = Field(default_factory=list)
    colour: Annotated[bool, InProduction(False)] = Field(default=True, description="Coloured lines")


def test_every_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_a_service_s_own_are_listed_and_no_secret_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = "# The partner's address:\n# a name and a port\nPARTNER=localhost:1\n\nTOKENS=\n"
    (tmp_path / ".env.example").write_text(example, encoding="utf-8")
    monkeypatch.setattr(variables, "PROJECT_ROOT", tmp_path)
    monkeypatch.setenv("API_KEY", OWN)

    listed = list(variables.lines(Own))

    pairs = dict(zip(listed[::2], listed[1::2], strict=True))
    assert pairs["GREETING=Hello"] == "    Opens every answer"
    assert pairs["API_KEY=(secret)"] == "    Key of the partner's API"
    assert pairs["PARTNER=(required)"] == "    The partner's address: a name and a port"
    assert pairs["COLOUR=true"] == "    Coloured lines; in production false"
    assert {"TOKENS=(secret)", "ELSEWHERE=3", "FIRST=a,b", "MADE=(computed)"} <= pairs.keys()
    assert not any(OWN in line for line in listed)


def test_the_command_works_with_settings_that_would_be_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "none")
    monkeypatch.setenv("SECRET_KEY", OWN)

    assert main(["settings"]) == 0

    output = capsys.readouterr().out
    assert "PORT=8000\n    Port to listen on; the platform sets it\n" in output
    assert "SECRET_KEY=(secret)\n" in output
    assert OWN not in output
    assert output.count("\n") == 2 * len(Settings.model_fields)
