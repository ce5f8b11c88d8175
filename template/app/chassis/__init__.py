# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""The chassis of this service. Its public names are imported from here.

    from app.chassis import Reader, Router, Writer, create_application

To use the chassis, read database.py, routing.py and streaming.py. An update brings newer files of
this directory. A name is loaded when it is first asked for, because commands need few.

A request passes bounds.py (sizes), http.py (request id, log, hosts, body limit), the middleware
of the service, and routing.py, which runs it in a thread and a session of database.py.
Your settings are in app/settings.py, the chassis's in settings.py here, and a feature's in its own
directory. All are checked before anything starts, and listed by `python -m app settings`.
A health check of your own is an argument of create_application in application.py.
A start goes through serve.py: settings, storage, port, restore, migrations, server.
A stop begins with SIGTERM, which gunicorn passes on to its workers. Streams end first
(application.py), then requests (worker.py), then the database is closed, and logs.py writes the
last lines. answers.py has the time limits of a stop.

    answers                           the template's answers, and values of the features
    assembly                          the settings, backup, features and code of this service
    features, replication             names of assembly, for services made before 0.5.0
    settings, variables, errors       settings, and how a refusal is told
    cli, check, checks                the commands of `python -m app`
    serve, migrate, revisions         the start
    gunicorn, worker                  the processes that serve
    application, http, bounds, logs   what surrounds a request
    openapi                           the document of the routes
    routing, database, sessions       routes in the database
    streaming, times                  server-sent events, and moments in UTC
    health                            whether all is well
    testing                           what tests of the service need

The directory checks is always here, and that of the engine, which has the storage, copies of it and
checks on it. Any other is a feature that was chosen.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from app.chassis.application import create_application as create_application
    from app.chassis.assembly import ChassisSettings as ChassisSettings
    from app.chassis.assembly import signed_in as signed_in
    from app.chassis.database import Database as Database
    from app.chassis.database import DatabaseBusyError as DatabaseBusyError
    from app.chassis.database import DatabaseUnavailableError as DatabaseUnavailableError
    from app.chassis.database import Reader as Reader
    from app.chassis.database import Writer as Writer
    from app.chassis.database import get_database as get_database
    from app.chassis.health import Degraded as Degraded
    from app.chassis.health import HealthCheck as HealthCheck
    from app.chassis.health import Unhealthy as Unhealthy
    from app.chassis.routing import Router as Router
    from app.chassis.settings import PROJECT_ROOT as PROJECT_ROOT
    from app.chassis.streaming import Events as Events
    from app.chassis.streaming import EventStream as EventStream
    from app.chassis.streaming import LastEventId as LastEventId
    from app.chassis.streaming import ServerSentEvent as ServerSentEvent
    from app.chassis.times import UtcTime as UtcTime
    from app.chassis.times import now as now

MODULES: Final = {
    "application": ("create_application",),
    "assembly": ("ChassisSettings", "signed_in"),
    "database": (
        "Database",
        "DatabaseBusyError",
        "DatabaseUnavailableError",
        "Reader",
        "Writer",
        "get_database",
    ),
    "health": ("Degraded", "HealthCheck", "Unhealthy"),
    "routing": ("Router",),
    "settings": ("PROJECT_ROOT",),
    "streaming": ("EventStream", "Events", "LastEventId", "ServerSentEvent"),
    "times": ("UtcTime", "now"),
}
"""The public names, by the module that has them."""

PLACES: Final = {name: module for module, names in MODULES.items() for name in names}

if not TYPE_CHECKING:  # a type checker would take any name for one of the chassis

    def __getattr__(name: str) -> Any:
        if name not in PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *PLACES])
