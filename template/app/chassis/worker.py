"""The worker that gunicorn starts for every process that serves."""

from typing import Any

from uvicorn_worker import UvicornWorker

from app.chassis import deadlines


class Worker(UvicornWorker):  # type: ignore[misc]  # the package has no types
    """uvicorn under gunicorn: exits non-zero when start-up fails, and is replaced when it hangs."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012, the base class declares it so
        "loop": "uvloop",
        "http": "httptools",
        "lifespan": "on",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": deadlines.REQUESTS,
    }
