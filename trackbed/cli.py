"""Command `trackbed` for one service, and `trackbed fleet` for many."""

import io
import os
import signal
import sys

import typer

from trackbed import personal, single
from trackbed.bounded import on_signal, stop
from trackbed.errors import FleetError, ServiceError, printable
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


class Interrupted(BaseException):
    """Signal that ends the command, after everything that it has started is ended and removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def interrupt(number: int) -> None:
    """End the programs that run, and with them the threads that wait for them."""
    for other in interruptions():  # A second signal would interrupt the cleanup
        signal.signal(other, signal.SIG_IGN)
    stop()
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


def interruptions() -> list[signal.Signals]:
    """Return the signals that end a command, as far as this system has them."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def main() -> None:
    """Run the command `trackbed`."""
    run(app)


def fleet() -> None:
    """Run the command `trackbed-fleet`, the name that `trackbed fleet` had before."""
    run(fleet_app)


def run(command: typer.Typer) -> None:
    """Run a command, and end with one line and an exit code if it is mistaken or interrupted."""
    personal.remember()
    isolate()
    for number in interruptions():
        on_signal(number, interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except (FleetError, ServiceError) as error:
        print(f"trackbed: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.number)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        print(f"trackbed: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
