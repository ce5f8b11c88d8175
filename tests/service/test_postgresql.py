"""The service on PostgreSQL, from its first start to its end; tests/faults breaks the server."""

from collections.abc import Callable
from pathlib import Path

from support.postgres import Server
from support.service import Service


def test_it_serves_from_postgresql(installed: Callable[..., Path], tmp_path: Path) -> None:
    project = installed(database="postgresql")
    with (
        Server() as server,
        Service(project, tmp_path / "data", DATABASE_URL=server.url) as service,
    ):
        service.wait_until_healthy()
        assert service.client.get("/health").json()["status"] == "ok"
        added = service.client.post("/notes", json={"text": "kept"})
        assert added.status_code == 201
        assert service.client.get("/notes").json() == [added.json()]
        service.terminate()
        assert service.ended() == 0, service.output()
        assert server.execute("SELECT text FROM notes") == [("kept",)]
    assert "Traceback" not in service.output()
