"""The command `trackbed`: one service, and below `fleet` many."""

import os
import signal
import sys
from types import FrameType

import typer

from trackbed import personal, single
from trackbed.errors import FleetError
from trackbed.fleet import app as fleet_app
from trackbed.git import isolate

app = typer.Typer(
    name="trackbed",
    help="A service and the Copier template it was made from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(single.status)
app.command()(single.diff)
app.command()(single.notes)
app.command()(single.update)
app.add_typer(fleet_app)


@app.callback()
def enter(directory: single.Directory = None) -> None:
    """Go to a directory before a command begins, as `git -C` does."""
    if directory is not None:
        try:
            os.chdir(directory.expanduser())
        except OSError as error:
            raise FleetError(f"{directory}: {error.strerror}") from None


def main() -> None:
    """Run the command `trackbed`."""
    run(app)


def fleet() -> None:
    """Run the command `trackbed-fleet`, the name that `trackbed fleet` had before."""
    run(fleet_app)


def run(command: typer.Typer) -> None:
    """Run a command, and end with one line and a code where it is mistaken or interrupted."""
    personal.shed()
    isolate()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        command()
    except FleetError as error:
        print(f"trackbed: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def stop(number: int, frame: FrameType | None) -> None:
    """End as an interrupted command does, so that what was made for a while goes."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
