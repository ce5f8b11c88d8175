# Belongs to the template: your own tests go into tests/, beside this directory.
"""Tests of HTTP, for the health check, for refusals, and for errors."""

from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from starlette.middleware.base import RequestResponseEndpoint

from app.chassis.logs import request_id
from app.chassis.testing import database_gone
from app.settings import Settings

from .conftest import BODY_LIMIT, URL
from .probes import CAUSE


def test_health_follows_the_database(service: TestClient, settings: Settings) -> None:
    """Ask behind the service's own middleware, because the platform asks like anybody else."""
    assert service.get("/health").status_code == 200

    with database_gone(settings):
        assert service.get("/health").status_code == 503
    assert service.get("/health").status_code == 200


def test_an_unknown_host_is_refused(service: TestClient) -> None:
    refused = service.get("/health", headers={"Host": "evil.example"})

    assert refused.status_code == 400
    assert refused.headers["X-Request-ID"]


def test_a_body_that_is_too_large_is_refused(probed: TestClient) -> None:
    assert probed.post("/contract/write", content=b"x" * BODY_LIMIT).status_code == 200
    assert probed.post("/contract/write", content=b"x" * (BODY_LIMIT + 1)).status_code == 413


def test_an_error_says_nothing_of_its_cause_and_leaves_nothing_behind(probed: TestClient) -> None:
    failed = probed.post("/contract/fail")

    assert failed.status_code == 500
    assert CAUSE not in failed.text
    assert failed.headers["X-Request-ID"]
    assert probed.get("/contract/read").json() == 0


def test_the_request_has_its_id_inside_the_services_middleware(app: FastAPI) -> None:
    seen: list[str] = []

    @app.middleware("http")
    async def inside(request: Request, call_next: RequestResponseEndpoint) -> Response:
        seen.append(request_id.get())
        return await call_next(request)

    with TestClient(app, URL) as client:
        assert [client.get("/health").headers["X-Request-ID"]] == seen
