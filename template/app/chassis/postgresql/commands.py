# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Commands of `python -m app` that this engine adds."""

import argparse
import logging.config
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from app.chassis.errors import StartupError

if TYPE_CHECKING:
    from app.chassis.postgresql.settings import PostgreSQLSettings

Run = Callable[..., int]


def add_anything(command: argparse.ArgumentParser) -> None:
    # Options of the other engine are arguments here, so that the command says what to do instead
    command.prefix_chars = "\0"
    command.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def add_nothing(_: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def address(settings: "PostgreSQLSettings") -> str:
    """Return the database's address without the password, which the programs ask for."""
    # `set` would leave the password as it is, because None means no change there
    url = settings.direct_url.set(drivername="postgresql")._replace(password=None)
    return shlex.quote(url.render_as_string(hide_password=False))


def backup(_: argparse.Namespace, settings: "PostgreSQLSettings", *__: object) -> NoReturn:
    raise StartupError(
        "Backup: Railway copies the database (its service, Backups). A copy by hand, with a "
        "pg_dump that is not older than the server:\n"
        f"  pg_dump --format=custom --file=copy.dump {address(settings)}"
    )


def restore(_: argparse.Namespace, settings: "PostgreSQLSettings", *__: object) -> NoReturn:
    raise StartupError(
        "Restore: Railway restores its own copies (the database's service, Backups). A copy by "
        "hand, while no service runs on the database:\n"
        "  pg_restore --clean --if-exists --no-owner --single-transaction "
        f"--dbname={address(settings)} copy.dump"
    )


def database(_: argparse.Namespace, settings: "PostgreSQLSettings", *__: object) -> int:
    """Serve the database of one's own machine until Ctrl-C."""
    from app.chassis.postgresql import local

    return local.serve(settings)


def add_move(command: argparse.ArgumentParser) -> None:
    kinds = "sqlite:///FILE, postgresql://..., or DATABASE_URL for that variable's value"
    command.add_argument("source", metavar="SOURCE", help=f"where the rows are: {kinds}")
    command.add_argument("target", metavar="TARGET", help="where they go, without rows so far")
    command.add_argument(
        "--leave",
        action="append",
        default=[],
        metavar="TABLE",
        help="leave a table, or TABLE.COLUMN, behind that no model has; may be repeated",
    )


def move(
    options: argparse.Namespace, settings: "PostgreSQLSettings", assembly: Any, migrate: Any
) -> int:
    from app.chassis import logs
    from app.chassis.postgresql import move

    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    addresses = options.source, options.target
    move.move(*addresses, options.leave, settings, assembly.metadata(), migrate)
    return 0


COMMANDS: Final[dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Run]]] = {
    "backup": ("what copies the database instead", add_anything, backup),
    "restore": ("what restores a copy instead", add_anything, restore),
    "move": ("bring the rows of another database here, or back", add_move, move),
    "database": ("a server for your own machine, until Ctrl-C", add_nothing, database),
}
"""Purpose of each command, the function that adds its arguments, and the one that runs it."""
