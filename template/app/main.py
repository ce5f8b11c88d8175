"""The application: the chassis with this service's routers and checks."""

from fastapi import FastAPI

from app.api import notes
from app.chassis import create_application
from app.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """What the server runs, and what tests call with settings of their own."""
    app = create_application(settings or Settings.load())
    app.include_router(notes.router)
    return app
