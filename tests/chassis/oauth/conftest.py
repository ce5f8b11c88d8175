"""The application, and somebody with a browser and an account."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.chassis.assembly import providers
from app.chassis.oauth.models import User
from app.chassis.oauth.session import cookie_name
from app.chassis.testing import new_database
from app.main import create_app
from app.settings import Settings

from ..databases import make_database
from .provider import Provider, serving

NAMES = [provider.name for provider in providers(Settings.model_construct())]

# what the provider for tests uses of Authlib
DEPRECATED = (
    "ignore::authlib.deprecate.AuthlibDeprecationWarning",
    "ignore:get_jwt_config:DeprecationWarning",
)


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.filterwarnings(*DEPRECATED))


class Browser(TestClient):
    """A browser that has opened the service, and keeps its cookies."""

    def __init__(self, app: FastAPI, provider: Provider) -> None:
        self.settings: Settings = app.state.settings
        self.provider = provider
        self.server: FastAPI = app
        super().__init__(app, base_url=self.settings.backend_url, follow_redirects=False)

    def leave(self, at: str = NAMES[0], page: str | None = None) -> str:
        """Open the login; the address at the provider."""
        answer = self.get(f"/auth/{at}/login", params={"next": page} if page else None)
        assert answer.status_code == 302, answer.text
        return answer.headers["Location"]

    def agree(self, address: str, subject: str = "ann") -> str:
        """Sign in at the provider; where it sends one back to."""
        answer = self.provider.client.post(address, data={"sub": subject})
        assert answer.status_code == 302, answer.text
        back = urlsplit(answer.headers["Location"])
        self.provider.secrets.update(parse_qs(back.query)["code"])
        return f"{back.path}?{back.query}"

    def sign_in(
        self, at: str = NAMES[0], page: str | None = None, subject: str = "ann", **claims: Any
    ) -> httpx.Response:
        """The whole way there and back."""
        self.provider.claims = claims
        return self.get(self.agree(self.leave(at, page), subject))

    @property
    def cookie(self) -> str:
        return self.cookies[cookie_name(self.settings)]

    @cookie.setter
    def cookie(self, value: str) -> None:
        host = self.base_url.host
        # as the jar notes what comes from such a host
        domain = host if "." in host else f"{host}.local"
        self.cookies.clear()
        self.cookies.set(cookie_name(self.settings), value, domain)

    def whoami(self) -> int | None:
        answer = self.get("/auth/me")
        assert answer.status_code in {200, 401}, answer.text
        found: int | None = answer.json().get("id")
        return found

    def sign_out(self) -> None:
        headers = {"Origin": self.settings.backend_url}
        assert self.post("/auth/logout", headers=headers).status_code == 204

    def users(self) -> list[User]:
        with self.server.state.database.read() as session:
            return list(session.scalars(select(User).order_by(User.id)))


@pytest.fixture(scope="session")
def running_provider() -> Iterator[Provider]:
    provider = Provider()
    with serving(provider):
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    running_provider.reset()
    return running_provider


@pytest.fixture
def settings(provider: Provider, tmp_path: Path) -> Settings:
    """With a client at every provider there is."""
    clients: dict[str, Any] = {}
    for name in NAMES:
        clients |= {
            f"{name}_client_id": f"{name}-client",
            f"{name}_client_secret": f"secret-of-{name}",
            f"{name}_issuer": provider.url,
        }
    url = new_database(tmp_path)
    settings = Settings.load(database_url=url, page_enabled=False, **clients)
    make_database(settings)
    return settings


class Log(logging.Handler):
    """What the feature has logged, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert record.exc_info is None, "a traceback says nothing that a line could not"
        self.lines.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[Log]:
    logger, handler = logging.getLogger("app.chassis.oauth"), Log()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


OpenBrowser = Callable[..., Browser]


@pytest.fixture
def open_browser(settings: Settings, provider: Provider) -> Iterator[OpenBrowser]:
    """Open a browser on the application with some settings changed."""
    with ExitStack() as stack:

        def open_browser(app: FastAPI | None = None, **changes: Any) -> Browser:
            app = app or create_app(settings.model_copy(update=changes))
            return stack.enter_context(Browser(app, provider))

        yield open_browser


@pytest.fixture
def browser(open_browser: OpenBrowser) -> Browser:
    return open_browser()
