# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Routes below /auth, which sign people in and out, and tell who is signed in."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Final
from urllib.parse import unquote

import anyio
import httpx2
from authlib.integrations.starlette_client import OAuthError
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from joserfc.errors import JoseError
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.middleware.sessions import SessionMiddleware

from app.chassis import openapi
from app.chassis.database import Database
from app.chassis.oauth.client import TIMEOUT, Client
from app.chassis.oauth.models import User
from app.chassis.oauth.origin import OriginCheck
from app.chassis.oauth.provider import Identity, Provider, UntrustworthyError
from app.chassis.oauth.session import (
    KEY,
    SESSION,
    CurrentUser,
    begin,
    cookie_key,
    cookie_name,
)
from app.chassis.oauth.settings import OAuthSettings
from app.chassis.routing import DatabaseRoute
from app.chassis.times import now

logger = logging.getLogger(__name__)

NEXT: Final = "next"
"""Key of the session for the page to return to."""

PATH_FORM: Final = re.compile(r"/[!-~]{0,1000}")

ELSEWHERE: Final = re.compile(r"^//|[\\\x00-\x1f\x7f]")
"""Parts of a path that can lead to another host.

Browsers take a backslash for a slash, and leave the control characters out.
"""

TALKATIVE: Final = ("authlib", "httpcore2", "httpx2")
"""Loggers that tell verifiers, headers and addresses at levels below WARNING."""


class Me(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    provider: str
    email: str | None
    name: str | None


def install(app: FastAPI, settings: OAuthSettings, providers: Iterable[Provider]) -> None:
    """Add the routes below /auth, the session, and the protection of it."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    SESSION.model.name = cookie_name(settings)
    clients = {provider.name: Client(provider) for provider in providers}
    app.include_router(make_router(settings, clients))
    # The middleware that is added last is the first to see a request
    app.add_middleware(
        SessionMiddleware,
        secret_key=cookie_key(settings),
        session_cookie=cookie_name(settings),
        max_age=settings.session_max_age,
        https_only=settings.production,
    )
    app.add_middleware(
        OriginCheck,
        cookie=cookie_name(settings),
        origins=(settings.backend_url, *settings.cors_origins),
    )


def make_router(settings: OAuthSettings, clients: Mapping[str, Client]) -> APIRouter:
    """Return the routes for the clients, which have their providers' names."""
    router = APIRouter(prefix="/auth", tags=["sign-in"], route_class=DatabaseRoute)

    def choose(name: str) -> Client:
        client = clients.get(name)
        if client is None:
            raise HTTPException(404, f"People sign in with {' or '.join(clients)} here")
        if not client.provider.offered:
            advice = f"{name.upper()}_CLIENT_ID is not set; see RUNBOOK.md, Sign-in"
            raise HTTPException(503, advice)
        return client

    @router.get(
        "/{provider}/login",
        status_code=302,
        response_class=RedirectResponse,
        responses={502: openapi.problem("The provider is out of order, or not to be trusted")},
    )
    async def login(
        request: Request,
        provider: str,
        page: Annotated[str, Query(alias="next", description="Where to go afterwards.")] = "/",
    ) -> Response:
        """Send somebody to the provider."""
        client = choose(provider)
        with blaming(client.provider):
            uri = client.provider.redirect_uri(settings.backend_url)
            # The person may want to use another account than before
            choice = {"prompt": "select_account"}
            answer: Response = await client.authorize_redirect(request, uri, **choice)
        request.session[NEXT] = safe_path(page)
        return answer

    @router.get("/{provider}/callback", include_in_schema=False)
    async def callback(request: Request, provider: str) -> Response:
        """Take somebody back from the provider, and sign them in."""
        client = choose(provider)
        if not await client.expects(request):
            raise expired(client.provider)
        if not request.query_params.get("code"):
            await client.forget(request)
            error = request.query_params.get("error", "")
            logger.info("%s has signed nobody in: %s", client.provider.title, as_code(error))
            raise HTTPException(
                400,
                f"{client.provider.title} has not signed you in; {start_again(client.provider)}",
            )
        with blaming(client.provider):
            identity = await client.identify(request)
        require_admission(settings, client.provider, identity)
        database: Database = request.app.state.database
        user = await database.run_writing(partial(store, provider, identity))
        page = request.session.get(NEXT, "/")
        begin(request.session, user)
        logger.info("User %d has signed in with %s", user.id, client.provider.title)
        return RedirectResponse(page, 303)

    @router.get("/me", response_model=Me)
    def me(user: CurrentUser, response: Response) -> User:
        """Return the person who is signed in."""
        # The edge gives it to the other answers. This one has personal data, also if middleware
        # of the service has a default of its own
        response.headers["Cache-Control"] = "no-store"
        return user

    @router.post(
        "/logout",
        status_code=204,
        responses={403: openapi.problem("The page that asks is of another origin")},
    )
    async def logout(request: Request) -> None:
        """Sign out, here and everywhere. Every cookie of the user becomes invalid."""
        # A person who was not signed in does not wait for the writer
        if kept := request.session.get(KEY):
            database: Database = request.app.state.database
            close = partial(close_sessions, kept["id"], kept["epoch"])
            if await database.run_writing(close):
                logger.info("User %d has signed out", kept["id"])
        request.session.clear()

    return router


def expired(provider: Provider) -> HTTPException:
    return HTTPException(400, f"This sign-in has expired or was used; {start_again(provider)}")


def start_again(provider: Provider) -> str:
    return f"start again at /auth/{provider.name}/login"


def as_code(error: str) -> str:
    """Return an error code of OAuth for the log, unless the browser has sent some other text."""
    return error if re.fullmatch("[a-z_]{1,40}", error) else "for a reason that is no code"


@contextmanager
def blaming(provider: Provider) -> Iterator[None]:
    """Limit a provider's time, and turn its errors into one line for the log and the answer."""
    try:
        with anyio.fail_after(TIMEOUT):
            yield
    except httpx2.HTTPStatusError as error:
        status, address = error.response.status_code, error.request.url
        logger.error("%s answers %s with %d", provider.title, address, status)
        raise HTTPException(502, f"{provider.title} is out of order; try again later") from None
    except (httpx2.HTTPError, TimeoutError) as error:
        logger.warning("%s does not answer: %s", provider.title, type(error).__name__)
        raise HTTPException(502, f"{provider.title} does not answer; try again later") from None
    except OAuthError as error:
        if error.error == "invalid_grant":
            raise expired(provider) from None
        logger.error("%s refuses this service: %s", provider.title, as_code(str(error.error)))
        told = f"{provider.title} refuses this service; its log says why"
        raise HTTPException(502, told) from None
    except Exception as error:
        told = str(error) if isinstance(error, JoseError | UntrustworthyError) else ""
        logger.error(
            "%s has sent what cannot be trusted: %s %s", provider.title, type(error).__name__, told
        )
        raise HTTPException(502, f"{provider.title} has sent what cannot be trusted") from None


def require_admission(settings: OAuthSettings, provider: Provider, identity: Identity) -> None:
    if settings.admits(identity.email, whole_domain=identity.whole_domain):
        return
    logger.info("%s has signed in somebody who is not in ALLOWED_EMAILS", provider.title)
    if identity.email is None:
        raise HTTPException(403, f"{provider.title} has no verified e-mail address of this account")
    raise HTTPException(403, "The e-mail address of this account is not in ALLOWED_EMAILS")


def store(provider: str, identity: Identity, session: Session) -> User:
    """Make a row for the account, or bring its row up to date."""
    account = select(User).where(User.provider == provider, User.subject == identity.subject)
    user = session.scalars(account).one_or_none()
    if user is None:
        user = User(provider=provider, subject=identity.subject)
        session.add(user)
    user.email = identity.email
    user.name = identity.name
    user.last_login_at = now()
    session.flush()
    return user


def close_sessions(user_id: int, epoch: int, session: Session) -> bool:
    """End every session of the user, unless the one that asks has been ended before."""
    statement = (
        update(User)
        .where(User.id == user_id, User.session_epoch == epoch)
        .values(session_epoch=User.session_epoch + 1)
        .returning(User.id)
    )
    return session.scalar(statement) is not None


def safe_path(page: str) -> str:
    """Return the page if it is one of this host's, else the page at `/`."""
    decoded = unquote(page.partition("?")[0])
    if not PATH_FORM.fullmatch(page) or ELSEWHERE.search(decoded):
        return "/"
    return page
