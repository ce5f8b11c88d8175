# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Page at `/` that uses the features, so that people see them at work."""

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from app.chassis.settings import CoreSettings, InProduction

if TYPE_CHECKING:
    from fastapi import FastAPI

PAGE: Final = Path(__file__).with_name("page.html")


class PageSettings(CoreSettings):
    """Settings of the page, a demonstration that is on by default only in development."""

    page_enabled: Annotated[bool, InProduction(False)] = Field(
        default=True, description="The page at /"
    )


def install(app: "FastAPI", settings: PageSettings) -> None:
    """Serve the page, if it is turned on."""
    if not settings.page_enabled:
        return
    # The start and the commands need only the settings, so the web framework is imported here
    from fastapi.responses import HTMLResponse

    html = PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": content_policy(html), "Cache-Control": "no-cache"}

    @app.get("/", include_in_schema=False, response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)


def content_policy(html: str) -> str:
    """Return a policy under which only the page's own script and style run.

    Trusted types keep the script from making markup of a text.

    https://www.w3.org/TR/CSP3/#grammardef-hash-source
    """
    sources = {
        name: " ".join(map(digest, re.findall(rf"<{name}>(.*?)</{name}>", html, re.DOTALL)))
        for name in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
