"""Where the file is, on a laptop, on a volume and elsewhere, and what is refused of it."""

import pytest

from app.chassis.settings import PROJECT_ROOT
from app.chassis.sqlite.settings import SQLiteSettings

from ..production import REQUIRED
from ..test_settings import load, on_railway, problems


def test_a_laptop_has_the_file_in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch).database_path == PROJECT_ROOT / "data" / "app.db"


def test_the_volume_has_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(load(monkeypatch, **on_railway()).database_path) == "/data/app.db"
    other = on_railway(DATABASE_URL="sqlite+aiosqlite:////data/deep/other.db")
    assert str(load(monkeypatch, **other).database_path) == "/data/deep/other.db"


def test_the_declared_defaults_are_the_effective_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch)

    # The one address that depends on another setting
    declared = {
        name: field.default
        for name, field in SQLiteSettings.model_fields.items()
        if name != "backend_url"
    }
    assert {name: getattr(settings, name) for name in declared} == declared


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "sqlite:///data/app.db"),
        ("DATABASE_URL", "sqlite:////tmp/app.db"),
        ("DATABASE_URL", "sqlite:////data/../tmp/app.db"),
        ("DATABASE_URL", "sqlite:////database/app.db"),
        ("DATABASE_URL", "sqlite:////data/app.db?mode=ro"),
        ("DATABASE_URL", "sqlite:////data/"),
        ("DATABASE_URL", "sqlite:////data/\napp.db"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:////data/\udcff.db"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "postgresql://user:hunter2@db/app"),
        ("APP_UID", "0"),
        ("APP_UID", "99999999999"),
        ("SQLITE_SYNCHRONOUS", "OFF"),
        ("VOLUME_PATH", "hunter2"),
    ],
)
def test_a_bad_value_is_named_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    found = problems(monkeypatch, **on_railway(**{name: value}))

    assert [line.partition(":")[0] for line in found] == [name]
    assert "hunter2" not in found[0]
    assert "\n" not in found[0]


def test_production_without_a_volume_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = problems(monkeypatch, **on_railway(RAILWAY_VOLUME_MOUNT_PATH=""))

    assert found.startswith("DATABASE_URL: ")
    assert "railway volume add" in found


def test_a_development_environment_on_railway_may_lack_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load(
        monkeypatch, **on_railway(RAILWAY_VOLUME_MOUNT_PATH="", ENVIRONMENT="development")
    )

    assert [line for line in settings.warnings() if line.startswith("DATABASE_URL: ")]


def test_off_railway_the_volume_is_what_volume_path_says(monkeypatch: pytest.MonkeyPatch) -> None:
    production = REQUIRED | {
        "BACKEND_URL": "https://api.example.com",
        "ENVIRONMENT": "production",
    }

    assert problems(monkeypatch, **production)[0].startswith("DATABASE_URL: ")
    settings = load(monkeypatch, **production, VOLUME_PATH="/srv/data")
    assert str(settings.database_path) == "/srv/data/app.db"
