"""The commands of `python -m app`. Each imports only what it needs."""

import argparse
import logging.config
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.chassis.errors import StartupError

if TYPE_CHECKING:
    from app.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; without one, start the service.

    Returns:
        The exit code: 0, or that of the error whose message went to stderr.
    """
    options = make_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except StartupError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return code


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app", description="Without a command: start, as deployments do."
    )
    parser.set_defaults(run=start)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    command = commands.add_parser("start", help="check, prepare and start the production server")
    command.set_defaults(run=start)

    command = commands.add_parser("serve", help="the same with a server for your own machine")
    command.add_argument("--reload", action="store_true", help="restart when the code changes")
    command.set_defaults(run=serve)

    command = commands.add_parser("migrate", help="bring the database to the newest revision")
    command.set_defaults(run=migrate)

    command = commands.add_parser("backup", help="copy the database while the service runs")
    command.add_argument("file", type=Path, metavar="FILE", help="the copy to make; a new file")
    command.set_defaults(run=backup)

    command = commands.add_parser("restore", help="put a copy in the database's place")
    command.add_argument("file", type=Path, metavar="FILE", help="a copy made by backup")
    command.add_argument("--dry-run", action="store_true", help="only check that it could be done")
    command.set_defaults(run=restore)
    return parser


def load_settings() -> "Settings":
    from app.settings import Settings

    return Settings.load()


def start(_: argparse.Namespace) -> int:
    from app.chassis import boot

    boot.start(load_settings())


def serve(options: argparse.Namespace) -> int:
    from app.chassis import boot

    boot.serve(load_settings(), reload=options.reload)


def migrate(_: argparse.Namespace) -> int:
    from app.chassis import logs, storage
    from app.chassis import migrate as migrations

    settings = load_settings()
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    storage.prepare(settings)
    with storage.locked(settings.database_path):
        migrations.upgrade(settings.database_path)
    return 0


def backup(options: argparse.Namespace) -> int:
    from app.chassis import backup as backups

    size = backups.backup(load_settings().database_path, options.file)
    print(f"{options.file}: {size} bytes")
    return 0


def restore(options: argparse.Namespace) -> int:
    from app.chassis import backup as backups
    from app.chassis import storage

    settings = load_settings()
    storage.prepare(settings)
    with storage.locked(settings.database_path):
        kept = backups.restore(options.file, settings.database_path, dry_run=options.dry_run)
    if options.dry_run:
        print(f"{options.file} can be restored")
        return 0
    print(f"{options.file} is now the database {settings.database_path}")
    if kept is not None:
        print(f"The one before is kept as {kept}")
    return 0
