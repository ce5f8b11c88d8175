"""Litestream's settings and how it is run; the bucket itself is not needed here."""

import os
import re
import subprocess

import pytest

from app.chassis.errors import ConfigurationError, StartupError
from app.chassis.litestream import process as litestream
from app.chassis.settings import PROJECT_ROOT
from app.settings import Settings

BUCKET = {
    "LITESTREAM_BUCKET": "copies",
    "LITESTREAM_ENDPOINT": "http://127.0.0.1:1",
    "LITESTREAM_ACCESS_KEY_ID": "key",
    "LITESTREAM_SECRET_ACCESS_KEY": "hunter2",
}


@pytest.fixture
def configured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in BUCKET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    return Settings.load()


def problems() -> set[str]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert "hunter2" not in str(caught.value)
    return {line.partition(":")[0] for line in caught.value.problems}


def test_production_needs_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")

    assert {name for name in problems() if name.startswith("LITESTREAM_")} == {
        "LITESTREAM_BUCKET",
        "LITESTREAM_ACCESS_KEY_ID",
        "LITESTREAM_SECRET_ACCESS_KEY",
    }


def test_half_a_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITESTREAM_BUCKET", "copies")

    assert problems() == {"LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY"}


@pytest.mark.parametrize("name", ["LITESTREAM_BUCKET", "LITESTREAM_PATH", "LITESTREAM_REGION"])
def test_what_would_be_yaml_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known, value in BUCKET.items():
        monkeypatch.setenv(known, value)
    monkeypatch.setenv(name, 'a"\nb: c')

    assert problems() == {name}


def test_without_a_bucket_the_server_runs_alone(settings: Settings) -> None:
    assert litestream.supervise(settings, ["server"]) == ["server"]
    assert litestream.environment(settings, {"A": "b"}) == {"A": "b"}
    litestream.restore(settings)


def test_the_server_runs_under_litestream(configured: Settings) -> None:
    command = litestream.supervise(configured, ["a server", "--port=1"])

    assert command[3].endswith("litestream/relay.py")
    assert command[5:] == [
        "replicate",
        "-config",
        str(PROJECT_ROOT / "litestream.yml"),
        "-exec",
        "'a server' --port=1",
    ]


def test_every_environment_has_a_folder_of_its_own(configured: Settings) -> None:
    preview = configured.model_copy(update={"railway_environment_name": "pr/12 é"})

    paths = [litestream.environment(s, {})["LITESTREAM_PATH"] for s in (configured, preview)]

    assert paths[0].endswith("/development")
    assert paths[1].endswith("/pr-12-")


def test_litestream_accepts_its_configuration(configured: Settings) -> None:
    environment = litestream.environment(configured, os.environ)
    configuration = (PROJECT_ROOT / "litestream.yml").read_text(encoding="utf-8")

    listed = subprocess.run(
        [litestream.binary(), "databases", "-config", str(litestream.CONFIG)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert set(re.findall(r"\$\{(\w+)\}", configuration)) <= environment.keys()
    assert str(configured.database_path) in listed.stdout


def test_an_unreachable_bucket_stops_the_start(
    configured: Settings,
) -> None:
    impatient = configured.model_copy(update={"litestream_restore_timeout": 3.0})

    with pytest.raises(StartupError, match=r"^Restore: ") as caught:
        litestream.restore(impatient)

    assert "hunter2" not in str(caught.value)
    assert not configured.database_path.exists()
