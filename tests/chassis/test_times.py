"""Times arrive with any offset, and are stored and answered in UTC."""

from datetime import UTC, datetime, time, timedelta, timezone

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Time, select
from sqlalchemy.engine import Row

from app.chassis.database import Reader, Writer
from app.chassis.times import UtcTime, in_utc
from app.main import create_app
from app.settings import Settings

from .databases import make_database

MOMENTS = Table(
    "moments",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("at", DateTime),
    Column("zoned", DateTime(timezone=True)),
    Column("of_day", Time),
)
TOO_EARLY, TOO_LATE = "0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-02:00"


class Declared(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    at: UtcTime


class Plain(BaseModel):
    at: datetime
    of_day: time | None = None


def make_client(settings: Settings) -> TestClient:
    make_database(settings)
    app = create_app(settings)
    router = APIRouter()

    def stored(session: Writer, at: datetime, of_day: time | None = None) -> Row[tuple[datetime]]:
        session.execute(MOMENTS.insert().values(at=at, zoned=at, of_day=of_day))
        found = session.execute(select(MOMENTS).order_by(MOMENTS.c.id.desc()).limit(1)).one()
        assert in_utc(found.zoned) == in_utc(found.at)
        return found

    @router.post("/declared", response_model=Declared)
    def declared(moment: Declared, session: Writer) -> object:
        return stored(session, moment.at)

    @router.post("/plain", response_model=Declared)
    def plain(moment: Plain, session: Writer) -> object:
        return stored(session, moment.at, moment.of_day)

    @router.get("/since", response_model=list[Declared])
    def since(session: Reader, moment: UtcTime) -> object:
        return session.execute(select(MOMENTS).where(MOMENTS.c.at >= moment)).all()

    @router.get("/since-plain", response_model=list[Declared])
    def since_plain(session: Reader, moment: datetime) -> object:
        return session.execute(select(MOMENTS).where(MOMENTS.c.at >= moment)).all()

    app.include_router(router)
    with app.state.database.write() as session:
        MOMENTS.metadata.create_all(session.connection())
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("path", ["/declared", "/plain"])
def test_an_offset_is_converted(settings: Settings, path: str) -> None:
    with make_client(settings) as client:
        for given, kept in {
            "2026-12-01T09:00:00+02:00": "2026-12-01T07:00:00Z",
            "2026-12-01T00:30:00+05:30": "2026-11-30T19:00:00Z",
            "2026-12-01T09:00:00-02:00": "2026-12-01T11:00:00Z",
            "2026-12-01T09:00:00Z": "2026-12-01T09:00:00Z",
            "2026-12-01T09:00:00": "2026-12-01T09:00:00Z",
        }.items():
            assert client.post(path, json={"at": given}).json() == {"at": kept}
        for outside in (TOO_EARLY, TOO_LATE):
            refused = client.post(path, json={"at": outside})
            assert refused.status_code == 422
            assert "years 1 to 9999" in refused.text


@pytest.mark.parametrize("path", ["/since", "/since-plain"])
def test_a_query_compares_in_utc(settings: Settings, path: str) -> None:
    with make_client(settings) as client:
        client.post("/plain", json={"at": "2026-12-01T07:00:00Z"})
        for moment, found in {
            "2026-12-01T08:59:00+02:00": 1,
            "2026-12-01T09:01:00+02:00": 0,
            "2026-12-01T07:00:00": 1,
        }.items():
            assert len(client.get(path, params={"moment": moment}).json()) == found
        assert client.get(path, params={"moment": TOO_LATE}).status_code == 422


def test_a_time_of_day_has_no_offset(settings: Settings) -> None:
    with make_client(settings) as client:
        for of_day, status in {"09:00": 200, "09:00Z": 200, "09:00+02:00": 422}.items():
            body = {"at": "2026-12-01T07:00:00Z", "of_day": of_day}
            assert client.post("/plain", json=body).status_code == status


def test_the_documentation_says_what_is_taken_as_utc(settings: Settings) -> None:
    schema = make_client(settings).app.openapi()["components"]["schemas"]  # type: ignore[attr-defined]
    assert "without is UTC" in schema["Declared"]["properties"]["at"]["description"]


def test_what_the_database_gives_is_utc() -> None:
    naive = datetime(2026, 12, 1, 9)  # noqa: DTZ001
    assert Declared(at=naive).at == datetime(2026, 12, 1, 9, tzinfo=UTC)
    zoned = naive.replace(tzinfo=timezone(timedelta(hours=2)))
    assert Declared(at=zoned).at.utcoffset() == timedelta(0)
