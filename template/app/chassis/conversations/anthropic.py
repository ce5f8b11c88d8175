# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Claude as a provider of answers, through Anthropic's library.

Its errors are listed at https://platform.claude.com/docs/en/api/errors.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anthropic
import httpx2 as httpx
from anthropic.types import AssistantMessageParam, MessageParam, StopReason, UserMessageParam

from app.chassis.conversations.anthropic_settings import AnthropicSettings
from app.chassis.conversations.turns import ProviderError, Turn, is_blank

logger = logging.getLogger(__name__)

TIMEOUT: Final = httpx.Timeout(60, connect=5)
"""Seconds to wait for the next byte. While Claude thinks, its server sends pings."""

RETRIES: Final = 2
"""Number of retries, which happen only if nothing has come yet."""

CUT_SHORT: Final[dict[StopReason, str]] = {
    "max_tokens": "The answer was cut off at ANTHROPIC_MAX_TOKENS",
    "model_context_window_exceeded": "The conversation is too long for the model",
    "refusal": "The model has declined to answer",
}


class AnthropicProvider:
    """Provider of answers by Claude."""

    def __init__(self, settings: AnthropicSettings) -> None:
        self.settings = settings
        self.client = anthropic.AsyncAnthropic(
            api_key=settings.anthropic_api_key.get_secret_value(),
            base_url=settings.anthropic_base_url,
            timeout=TIMEOUT,
            max_retries=RETRIES,
        )

    async def stream(self, turns: Sequence[Turn]) -> AsyncGenerator[str, None]:
        prompt = self.settings.anthropic_system_prompt
        request = self.client.messages.stream(
            model=self.settings.anthropic_model,
            max_tokens=self.settings.anthropic_max_tokens,
            system=anthropic.omit if is_blank(prompt) else prompt,
            messages=[as_parameter(turn) for turn in turns],
        )
        reason: StopReason | None = None
        async with errors_explained(), request as events:
            async for event in events:
                if event.type == "text":
                    yield event.text
                elif event.type == "message_delta":
                    reason = event.delta.stop_reason
        if reason is None:
            raise ProviderError("The connection to the model was cut off")
        if explanation := CUT_SHORT.get(reason):
            raise ProviderError(explanation)

    async def aclose(self) -> None:
        await self.client.close()


def as_parameter(turn: Turn) -> MessageParam:
    if turn.role == "user":
        return UserMessageParam(role="user", content=turn.text)
    return AssistantMessageParam(role="assistant", content=turn.text)


@asynccontextmanager
async def errors_explained() -> AsyncGenerator[None, None]:
    """Replace the library's errors with messages for the person, and log the cause."""
    try:
        yield
    except anthropic.RateLimitError as error:
        raise explained("The model is asked too often; try again in a minute", error) from None
    except (anthropic.AuthenticationError, anthropic.PermissionDeniedError) as error:
        raise explained("The model's key is not accepted", error) from None
    except anthropic.APIStatusError as error:
        if error.status_code >= 500 or error.type == "overloaded_error":
            raise explained("The model is overloaded; try again in a minute", error) from None
        raise explained("The model does not accept the request", error) from None
    except (anthropic.APITimeoutError, httpx.TimeoutException) as error:
        raise explained("The model does not answer", error) from None
    except (anthropic.APIConnectionError, httpx.TransportError) as error:
        raise explained("The connection to the model was cut off", error) from None
    except anthropic.AnthropicError as error:
        raise explained("The model's answer cannot be read", error) from None


def explained(message: str, error: Exception) -> ProviderError:
    status, request = getattr(error, "status_code", None), getattr(error, "request_id", None)
    kind = type(error).__name__
    logger.warning("Anthropic: %s (%s, status %s, request %s)", message, kind, status, request)
    return ProviderError(message)
