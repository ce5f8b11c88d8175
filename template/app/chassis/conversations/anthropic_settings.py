# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Settings of Claude, and the check of who may spend the key's money."""

import re
from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from app.chassis import answers, proxies
from app.chassis.checks.finding import Finding, failed, ok
from app.chassis.settings import CoreSettings, is_production

SPENDERS: Final = "ANTHROPIC_FOR_EVERYONE"

KEY_FORM: Final = re.compile(r"[\x21-\x7e]*")


class AnthropicSettings(CoreSettings):
    """Settings of the key, the model, and the cost of an answer."""

    anthropic_api_key: SecretStr = Field(
        default=SecretStr(""), description="Claude's key; required in production"
    )
    anthropic_model: str = Field(default="claude-sonnet-5-5", description="The model that answers")
    anthropic_max_tokens: int = Field(default=4096, ge=1, description="Most tokens of an answer")
    anthropic_system_prompt: str = Field(
        default="", description="What the model is told before every conversation"
    )
    anthropic_base_url: str = Field(
        default="https://api.anthropic.com",
        description="Where the API is; another address for a gateway",
    )
    anthropic_for_everyone: bool = Field(
        default=False,
        description="true if strangers may spend the key's money, which `check` else refuses",
    )

    @field_validator("anthropic_api_key")
    @classmethod
    def key_is_given(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        key = value.get_secret_value()
        if not key and is_production(info):
            raise ValueError("is required in production; create one at platform.claude.com")
        if not KEY_FORM.fullmatch(key):
            raise ValueError("has spaces or letters that no key has; copy it again")
        return value

    @field_validator("anthropic_base_url")
    @classmethod
    def base_url_is_one(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host = parts.hostname
        except ValueError:
            host = None
        if not host or parts.scheme not in {"http", "https"}:
            raise ValueError("must be an address, such as https://api.anthropic.com")
        return value.rstrip("/")

    def spent_by_strangers(self) -> str:
        """Return why strangers may spend the key's money, and what to do, or an empty text."""
        signs_in = "oauth" in answers.FEATURES
        known = bool(getattr(self, "allowed_emails", ()))
        if not self.production or self.anthropic_for_everyone or known:
            return ""
        who = "everyone with an account may sign in" if signs_in else "nobody has to sign in"
        way = "list who may in ALLOWED_EMAILS" if signs_in else "add the feature oauth"
        return (
            f"{who}, and so spend the money behind ANTHROPIC_API_KEY; {way}, or set "
            f"{SPENDERS}=true and a limit at platform.claude.com"
        )

    def refusals(self) -> list[str]:
        """Add the proxies with which Claude could not be asked."""
        asked = self.anthropic_api_key.get_secret_value()
        return super().refusals() + (proxies.refusals("httpx") if asked else [])


def check(settings: AnthropicSettings) -> Finding:
    """Report whether strangers spend the key's money."""
    name = f"settings.{SPENDERS}"
    if problem := settings.spent_by_strangers():
        return failed(name, *problem.split("; "))
    return ok(name, "on" if settings.anthropic_for_everyone else "off")
