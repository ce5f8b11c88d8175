# Belongs to the template: your own tests go into tests/, beside this directory.
"""Tests of the settings. Production refuses bad ones, and each can be looked up."""

import os
import subprocess
import sys

import pytest

from app.chassis import variables as listed
from app.chassis.errors import ConfigurationError
from app.chassis.settings import PROJECT_ROOT
from app.chassis.testing import required_variables
from app.settings import Settings

BAD = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "hunter2",
    "DATABASE_URL": "sqlite:///relative.db",
    "PORT": "none",
    "WORKERS": "none",
    "CORS_ORIGINS": "*",
}


def test_production_refuses_and_names_every_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BAD.items():
        monkeypatch.setenv(name, value)
    required = required_variables(Settings)
    for name in required:
        monkeypatch.delenv(name)

    with pytest.raises(ConfigurationError) as refused:
        Settings.load()

    named = {problem.partition(":")[0] for problem in refused.value.problems}
    assert named >= BAD.keys() - {"ENVIRONMENT"} | required.keys()
    assert "hunter2" not in str(refused.value)


def test_bad_settings_end_the_start_with_78_and_the_reason(variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app"],
        cwd=PROJECT_ROOT,
        env={"PATH": os.environ["PATH"], **variables, **BAD},
        capture_output=True,
        encoding="utf-8",
    )

    assert (done.returncode, "Traceback" in done.stderr) == (78, False)
    assert "SECRET_KEY: " in done.stderr
    assert "hunter2" not in done.stderr


def test_every_setting_has_a_description() -> None:
    """Look for each `Field(description=...)`, all of which `python -m app settings` shows."""
    for name, field in Settings.model_fields.items():
        variable = listed.variable(Settings, name)
        assert listed.description(variable, field), variable
