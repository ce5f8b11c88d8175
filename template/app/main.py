"""Application, made of the chassis and this service's routers and checks."""

from fastapi import FastAPI

from app.api import notes
from app.chassis import create_application
from app.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application for the server, or for tests with settings of their own."""
    app = create_application(settings or Settings.load())
    app.include_router(notes.router)
    return app
