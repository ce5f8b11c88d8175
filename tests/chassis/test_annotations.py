"""Routes whose annotations are text, as `from __future__ import annotations` makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.testclient import TestClient
from pydantic import BaseModel

from app.chassis.database import Reader
from app.chassis.routing import DatabaseRoute
from app.main import create_app

from .databases import make_database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.settings import Settings

router = APIRouter(prefix="/chassis", route_class=DatabaseRoute)


class Name(BaseModel):
    name: str


@router.get("/names", response_model=list[str])
def names(session: Reader, times: int = 2) -> Sequence[str]:
    return ["a"] * times


@router.post("/names")
def create(name: Name, session: Reader) -> Name:
    return name


def test_names_that_only_the_type_checker_knows(settings: Settings) -> None:
    make_database(settings)
    app = create_app(settings)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/chassis/names?times=3").json() == ["a"] * 3
        assert client.post("/chassis/names", json={"name": "x"}).json() == {"name": "x"}
        assert client.get("/chassis/names?times=x").status_code == 422
