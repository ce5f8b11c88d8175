# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Commands of `python -m app` that this engine adds, which are backup and restore."""

import argparse
import logging.config
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.chassis.errors import StartupError

if TYPE_CHECKING:
    from app.chassis.sqlite.settings import SQLiteSettings

Run = Callable[..., int]


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


def add_backup(command: argparse.ArgumentParser) -> None:
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


def backup(options: argparse.Namespace, settings: "SQLiteSettings", *_: object) -> int:
    from app.chassis.sqlite import backup, volume

    if options.target is None and settings.app_uid is not None:
        # A root shell also has to work as the service's user, because the service rotates these
        volume.prepare(settings)
    copy = backup.backup(
        settings.database_path,
        options.target,
        compress=options.gzip,
        keep=options.keep,
        reserve=settings.min_free_bytes,
    )
    print(f"{copy}: {copy.stat().st_size} bytes")
    return 0


def add_restore(command: argparse.ArgumentParser) -> None:
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


def restore(
    options: argparse.Namespace,
    settings: "SQLiteSettings",
    assembly: Any,
    migrate: Any,
) -> int:
    from app.chassis import logs
    from app.chassis.sqlite import backup, volume

    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    volume.prepare(settings)
    database = settings.database_path
    with volume.locked(database):
        backup.tidy(database)
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=database.parent) as directory:
            copy, name = options.file, str(options.file)
            if copy is None:
                copy = Path(directory, "copy.db")
                name = "the newest copy" if options.at is None else f"the copy of {options.at}"
                if not assembly.fetch(settings, copy, options.at):
                    limit = "" if options.at is None else f" of {options.at} or before"
                    raise StartupError(f"Restore: there is no copy{limit}.")
            kept = backup.restore(
                copy, database, migrate.upgrade, dry_run=options.dry_run, name=name
            )
    if options.dry_run:
        print(f"{name} can be restored")
        return 0
    print(f"{name} is now the database {database}")
    if kept is not None:
        print(f"The one before is kept as {kept}")
    return 0


COMMANDS: Final[dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Run]]] = {
    "backup": ("copy the database while the service runs", add_backup, backup),
    "restore": ("put a copy in the database's place", add_restore, restore),
}
"""Purpose of each command, the function that adds its arguments, and the one that runs it."""
