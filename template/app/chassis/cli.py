# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Commands of `python -m app`. Each command imports only what it needs."""

import argparse
import logging.config
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from app.chassis.errors import StartupError

if TYPE_CHECKING:
    from app.chassis.replication import ChassisSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, or start the service if none is given.

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

    command = commands.add_parser("check", help="look for what would go wrong in production")
    command.add_argument(
        "--variables",
        metavar="FILE",
        help="check these variables instead of the environment's: JSON or lines NAME=VALUE; "
        "- is standard input",
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=check)

    command = commands.add_parser("settings", help="each variable, its default and what it is for")
    command.set_defaults(run=show_settings)

    command = commands.add_parser("status", help="the service's health, with sizes and ages")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=status)

    command = commands.add_parser("backup", help="copy the database while the service runs")
    command.add_argument(
        "target",
        nargs="?",
        type=Path,
        metavar="FILE|DIR",
        help="the copy to make, a new file, or a directory to make it in; by default "
        "the directory backups beside the database",
    )
    command.add_argument("--gzip", action="store_true", help="compress the copy")
    command.add_argument(
        "--keep", type=positive, metavar="N", help="delete all but the N newest in the directory"
    )
    command.set_defaults(run=backup)

    command = commands.add_parser("restore", help="put a copy in the database's place")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a copy made by backup")
    source.add_argument("--latest", action="store_true", help="the newest copy")
    source.add_argument(
        "--at",
        type=moment,
        metavar="TIME",
        help="the state at a time, or the newest before it, such as 2026-01-31T09:30:00Z",
    )
    command.add_argument("--dry-run", action="store_true", help="only check that it could be done")
    command.set_defaults(run=restore)

    command = commands.add_parser("template", help="how this stands to the template it comes from")
    command.add_argument("task", choices=("status", "diff", "notes", "update"))
    command.add_argument("options", nargs=argparse.REMAINDER, help="those of trackbed")
    command.set_defaults(run=template)
    return parser


def load_settings() -> "ChassisSettings":
    from app.chassis import assembly

    return assembly.settings_class().load()


def start(_: argparse.Namespace) -> int:
    from app.chassis import serve

    serve.start()


def serve(options: argparse.Namespace) -> int:
    from app.chassis import serve

    serve.serve(reload=options.reload)


def migrate(_: argparse.Namespace) -> int:
    from app.chassis import logs, storage
    from app.chassis import migrate as migrations

    settings = load_settings()
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    storage.prepare(settings)
    with storage.locked(settings.database_path):
        migrations.upgrade(settings.database_path)
    return 0


def check(options: argparse.Namespace) -> int:
    from app.chassis import check as checks

    given = None if options.variables is None else checks.read_variables(options.variables)
    findings = checks.run(given)
    print(checks.as_json(findings) if options.json else checks.as_text(findings))
    return 1 if checks.is_failed(findings) else 0


def show_settings(_: argparse.Namespace) -> int:
    from app.chassis import assembly, variables

    print("\n".join(variables.lines(assembly.settings_class())))
    return 0


def status(options: argparse.Namespace) -> int:
    import json

    from app.chassis import status as statuses

    found = statuses.report(load_settings())
    print(json.dumps(found, indent=2) if options.json else "\n".join(statuses.lines(found)))
    return 1 if found["status"] == "failed" else 0


def backup(options: argparse.Namespace) -> int:
    from app.chassis import backup as backups
    from app.chassis import storage

    settings = load_settings()
    if options.target is None and settings.app_uid is not None:
        # A root shell also has to work as the service's user, because the service rotates these
        storage.prepare(settings)
    copy = backups.backup(
        settings.database_path,
        options.target,
        compress=options.gzip,
        keep=options.keep,
        reserve=settings.min_free_bytes,
    )
    print(f"{copy}: {copy.stat().st_size} bytes")
    return 0


def restore(options: argparse.Namespace) -> int:
    import tempfile

    from app.chassis import backup as backups
    from app.chassis import logs, replication, storage

    settings = load_settings()
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    storage.prepare(settings)
    database = settings.database_path
    with storage.locked(database):
        backups.tidy(database)
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=database.parent) as directory:
            copy, name = options.file, str(options.file)
            if copy is None:
                copy = Path(directory, "copy.db")
                name = "the newest copy" if options.at is None else f"the copy of {options.at}"
                if not replication.fetch(settings, copy, options.at):
                    raise StartupError(f"Restore: there is no copy{limit(options.at)}.")
            kept = backups.restore(copy, database, dry_run=options.dry_run, name=name)
    if options.dry_run:
        print(f"{name} can be restored")
        return 0
    print(f"{name} is now the database {database}")
    if kept is not None:
        print(f"The one before is kept as {kept}")
    return 0


def template(options: argparse.Namespace) -> int:
    """Hand over to the template's command, which takes the place of this process.

    Its exit code is 0 if this is in step, 1 if it is behind, changed or has something to settle,
    and 2 if that cannot be told or done.
    """
    from app.chassis import template as templates

    templates.hand_over([options.task, *options.options])


def limit(at: datetime | None) -> str:
    return "" if at is None else f" of {at} or before"


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return number


def moment(text: str) -> datetime:
    """Read a time in the past. It needs a zone, or nobody could know which time is meant."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("is no time; write it as 2026-01-31T09:30:00Z") from None
    if value.tzinfo is None:
        raise argparse.ArgumentTypeError("has no zone; write it as 2026-01-31T09:30:00Z")
    if value > datetime.now(UTC):
        raise argparse.ArgumentTypeError("is in the future")
    return value
