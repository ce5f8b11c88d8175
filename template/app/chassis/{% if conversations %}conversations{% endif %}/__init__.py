"""Conversations: threads of messages, and answers that stream while they are written.

Tables and routes belong to the template. Another model is a class with the methods of
`provider.Provider`, given to `app.state.replies.provider` in app/main.py.
"""

from fastapi import FastAPI

from app.chassis.conversations import routes
from app.chassis.conversations.provider import make_provider
from app.chassis.conversations.replies import Replies
from app.chassis.features import ChassisSettings


def install(app: FastAPI, settings: ChassisSettings) -> None:
    """Add the routes below /threads, and what writes the answers."""
    app.state.replies = Replies(app.state.database, make_provider(settings))
    app.include_router(routes.router)
