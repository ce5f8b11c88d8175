"""People sign in with an account that they have elsewhere: OpenID Connect, and a session cookie.

A route that takes a `CurrentUser` is for people who have signed in, one that takes an
`OptionalUser` for everyone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.chassis.features import ChassisSettings
    from app.chassis.oauth.session import CurrentUser, OptionalUser

__all__ = ["CurrentUser", "OptionalUser", "install"]


def __getattr__(name: str) -> object:
    """Imported only now: the start and the commands need the settings, and no web framework."""
    if name in {"CurrentUser", "OptionalUser"}:
        from app.chassis.oauth import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def install(app: "FastAPI", settings: "ChassisSettings") -> None:
    """Add the routes below /auth, the session, and the protection of it."""
    from app.chassis.oauth.routes import add_sign_in

    add_sign_in(app, settings)
