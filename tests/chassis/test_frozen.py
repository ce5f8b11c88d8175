"""What the files of people import, who began with an earlier release, stays importable."""

import warnings
from importlib import import_module
from importlib.util import find_spec

import pytest

import app.chassis
from app.chassis import features, replication, settings

FROZEN = {
    "application": ["create_application"],
    "checks.finding": ["Finding"],
    "database": ["Database", "DatabaseBusyError", "Reader", "Writer", "get_database"],
    "features": ["ChassisSettings", "signed_in"],
    "health": ["Degraded", "HealthCheck", "Unhealthy"],
    "migrate": ["upgrade"],
    "replication": ["ChassisSettings"],
    "routing": ["DatabaseRoute"],
    "settings": ["PROJECT_ROOT", "ChassisSettings"],
    "streaming": ["EventStream", "Events", "LastEventId", "ServerSentEvent"],
    "testing": ["required_variables"],
    "times": ["UtcTime", "now"],
}
FROZEN_OF_FEATURES = {
    "conversations.turns": ["Provider", "ProviderError"],
    "oauth.session": ["CurrentUser", "OptionalUser"],
}


@pytest.mark.parametrize("module", [*FROZEN, *FROZEN_OF_FEATURES])
def test_a_frozen_name_is_there_without_a_warning(module: str) -> None:
    feature = module.partition(".")[0]
    if module in FROZEN_OF_FEATURES and not find_spec(f"app.chassis.{feature}"):
        pytest.skip(f"{feature} was not chosen")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = import_module(f"app.chassis.{module}")
        for name in (FROZEN | FROZEN_OF_FEATURES)[module]:
            assert getattr(found, name) is not None


def test_the_settings_are_one_class_wherever_they_are_imported_from() -> None:
    assert features.ChassisSettings is replication.ChassisSettings is app.chassis.ChassisSettings
    assert issubclass(app.chassis.ChassisSettings, settings.ChassisSettings)
    assert app.chassis.ChassisSettings.__module__ == "app.chassis.assembly"
