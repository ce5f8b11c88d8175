# Belongs to the template: your own tests go into tests/, beside this directory.
"""Routes that the contract adds to the application, which `python -m probes` starts."""

import asyncio
import sys

from fastapi import APIRouter, FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.chassis import cli, serve
from app.chassis.database import Reader, Writer
from app.chassis.routing import DatabaseRoute
from app.chassis.streaming import Events, EventStream, ServerSentEvent
from app.main import create_app
from app.settings import Settings

CAUSE = "password=hunter2"


def count(session: Session) -> int:
    """Return the number in the contract's own table, which no migration makes."""
    return int(session.execute(text("SELECT number FROM contract_counter")).scalar_one())


def set_count(session: Session, value: int) -> None:
    session.execute(text("UPDATE contract_counter SET number = :value"), {"value": value})


def make_counter(session: Session) -> None:
    session.execute(text("CREATE TABLE contract_counter AS SELECT 0 AS number"))


router = APIRouter(prefix="/contract", route_class=DatabaseRoute)


@router.get("/read")
def read(session: Reader) -> int:
    return count(session)


@router.post("/write")
def write(session: Writer) -> int:
    value = count(session) + 1
    set_count(session, value)
    return value


@router.get("/write-as-reader")
def write_as_reader(session: Reader) -> None:
    set_count(session, 1000)


@router.post("/fail")
def fail(session: Writer) -> None:
    set_count(session, 1000)
    raise RuntimeError(CAUSE)


@router.get("/stream", response_class=EventStream)
async def stream() -> EventStream:
    return EventStream(events())


async def events() -> Events:
    yield ServerSentEvent(event="first", data="")
    await asyncio.Event().wait()


def add_probes(app: FastAPI) -> FastAPI:
    """Put the probes before the service's routes, and remove the service's middleware."""
    app.router.routes[:0] = router.routes
    app.user_middleware.clear()
    return app


def create_probed_app() -> FastAPI:
    Settings.model_config["env_file"] = None
    return add_probes(create_app())


if __name__ == "__main__":
    Settings.model_config["env_file"] = None
    serve.APPLICATION = "probes:create_probed_app"  # type: ignore[misc]
    sys.exit(cli.main([]))
