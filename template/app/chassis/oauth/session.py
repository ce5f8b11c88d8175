# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Session of a person who is signed in.

A signed cookie says who it is and since when. It is compared with the database.
"""

import hashlib
import hmac
import time
from typing import Annotated, Any, Final

from fastapi import Depends, HTTPException
from fastapi.openapi.models import APIKey
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from app.chassis.database import Database
from app.chassis.oauth.models import User
from app.chassis.oauth.settings import OAuthSettings

KEY: Final = "user"
"""Key of the session for who is signed in. Its other keys belong to sign-ins under way."""


def cookie_name(settings: OAuthSettings) -> str:
    """Return the cookie's name.

    Browsers take `__Host-` only from the host itself, over HTTPS and for all of its paths.
    """
    return "__Host-session" if settings.production else "session"


def cookie_key(settings: OAuthSettings) -> str:
    """Return a separate key, so that nothing else that SECRET_KEY signs passes as a session."""
    secret = settings.secret_key.get_secret_value().encode()
    return hmac.new(secret, b"session cookie", hashlib.sha256).hexdigest()


def begin(session: dict[str, Any], user: User) -> None:
    """Sign somebody in, and remove everything else from the session."""
    session.clear()
    session[KEY] = {"id": user.id, "epoch": user.session_epoch, "since": int(time.time())}


def find_user(connection: HTTPConnection) -> User | None:
    """Return the user who is signed in, or None if nobody is or may still be."""
    kept = connection.session.get(KEY)
    settings: OAuthSettings = connection.app.state.settings
    # The cookie's own age does not count, because it begins anew when the session changes
    if kept is None or time.time() >= kept["since"] + settings.session_max_age:
        return None
    database: Database = connection.app.state.database
    # This database session ends at once, because a route would hold its `Reader` while it waits
    with database.read() as session:
        user = session.get(User, kept["id"])
    if user is None or user.session_epoch != kept["epoch"] or not settings.admits(user.email):
        return None
    return user


OptionalUser = Annotated[User | None, Depends(find_user)]
"""User who is signed in, or None."""


class SessionCookie(SecurityBase):
    """Session's cookie for the OpenAPI document. `install` gives it its name."""

    scheme_name = "session"
    model = APIKey.model_validate({"in": "cookie", "name": "session"})

    def __call__(self) -> None:
        """Do nothing, because `find_user` looks up who is signed in."""


SESSION: Final = SessionCookie()


def require_user(user: OptionalUser, _: Annotated[None, Depends(SESSION)]) -> User:
    if user is None:
        raise HTTPException(401, "You are not signed in")
    return user


CurrentUser = Annotated[User, Depends(require_user)]
"""User who is signed in. If nobody is, the answer is 401."""


def current_user_id(user: CurrentUser) -> int:
    return user.id
