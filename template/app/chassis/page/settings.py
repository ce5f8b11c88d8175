# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Setting that turns the page at `/` on."""

from typing import Annotated

from pydantic import Field

from app.chassis.settings import CoreSettings, InProduction


class PageSettings(CoreSettings):
    """Settings of the page, a demonstration that is on by default only in development."""

    page_enabled: Annotated[bool, InProduction(False)] = Field(
        default=True, description="The page at /"
    )
