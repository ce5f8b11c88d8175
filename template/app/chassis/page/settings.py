# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Setting that turns the page at `/` on."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from app.chassis.settings import CoreSettings


class PageSettings(CoreSettings):
    """Settings of the page, a demonstration that is on by default only in development."""

    page_enabled: bool = Field(
        default=False, description="The page at /; by default in development only"
    )

    @model_validator(mode="before")
    @classmethod
    def derive_page(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(given)
        on_railway = bool(values.get("railway_environment_id"))
        environment = values.get("environment", "production" if on_railway else "development")
        values.setdefault("page_enabled", str(environment).lower() == "development")
        return values
