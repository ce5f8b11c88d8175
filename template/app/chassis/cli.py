# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Commands of `python -m app`. Each command imports only what it needs."""

import argparse
import gc
import json
import logging.config
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from app.chassis.errors import StartupError

if TYPE_CHECKING:
    from app.chassis.assembly import ChassisSettings

ROOT: Final = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, or start the service if none is given.

    Returns:
        The exit code: 0, or that of the error whose message went to stderr.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options = make_parser(given).parse_args(given)
    try:
        code: int = options.run(options)
    except StartupError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        told = f"{error.filename} cannot be used as uid {os.geteuid()}: {error.strerror}"
        print(f"Storage: {told}. Run the command as the service's user.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app", description="Without a command: start, as deployments do."
    )
    parser.set_defaults(run=start)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(run.__name__, help=text)
        command.set_defaults(run=run)
        return command

    add(start, "check, prepare and start the production server")
    command = add(serve, "the same with a server for your own machine")
    command.add_argument("--reload", action="store_true", help="restart when the code changes")
    add(migrate, "bring the database to the newest revision")
    command = add(check, "look for what would go wrong in production")
    command.add_argument(
        "--variables",
        metavar="FILE",
        help="check these variables instead of the environment's: JSON or lines NAME=VALUE; "
        "- is standard input",
    )
    command.add_argument("--json", action="store_true", help="for programs")
    add(settings, "each variable, its default and what it is for")
    command = add(status, "the service's health, with sizes and ages")
    command.add_argument("--json", action="store_true", help="for programs")
    if arguments and arguments[0] not in {*commands.choices, "template"}:
        # The commands above import this themselves, and `template` has to work without it
        from app.chassis.assembly import engine

        for name, (text, add_arguments, run) in engine.COMMANDS.items():
            command = commands.add_parser(name, help=text)
            add_arguments(command)
            command.set_defaults(run=partial(of_engine, run))
    command = add(template, "how this stands to the template it comes from")
    command.add_argument("task", choices=("status", "diff", "notes", "update"))
    command.add_argument("options", nargs=argparse.REMAINDER, help="those of trackbed")
    return parser


def load_settings() -> "ChassisSettings":
    from app.chassis import assembly

    return assembly.settings_class().load()


def start(_: argparse.Namespace) -> int:
    gc.disable()  # Nearly all objects that imports make are kept, and it takes long to look at them
    try:
        from app.chassis import serve

        settings = load_settings()
    finally:
        # These two calls make the new objects old, or all would be looked at once more
        gc.freeze()
        gc.unfreeze()
        gc.enable()
    serve.start(settings)


def serve(options: argparse.Namespace) -> int:
    from app.chassis import serve

    serve.serve(load_settings(), reload=options.reload)


def migrate(_: argparse.Namespace) -> int:
    from app.chassis import assembly, logs, migrate

    settings = load_settings()
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    with assembly.engine.prepare(settings, 0):
        migrate.upgrade(settings)
    return 0


def check(options: argparse.Namespace) -> int:
    from app.chassis import check

    given = None if options.variables is None else check.read_variables(options.variables)
    findings = check.run(given)
    print(check.as_json(findings) if options.json else check.as_text(findings))
    return 1 if check.is_failed(findings) else 0


def settings(_: argparse.Namespace) -> int:
    from app.chassis import assembly, variables

    print("\n".join(variables.lines(assembly.settings_class())))
    return 0


def status(options: argparse.Namespace) -> int:
    from app.chassis import assembly, health

    settings, engine = load_settings(), assembly.engine
    checks = {**engine.checks(settings, None), **assembly.Monitor(settings).health_checks}
    found = health.figures(health.Health(settings, checks), engine.figures(settings))
    lines = health.figure_lines(found, engine.in_words(found))
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines))
    return 1 if found["status"] == "failed" else 0


def of_engine(run: Callable[..., int], options: argparse.Namespace) -> int:
    """Run a command of the engine, with the two modules that it may not import itself."""
    from app.chassis import assembly, migrate

    return run(options, load_settings(), assembly, migrate)


class TemplateError(StartupError):
    """Error that says why the template's command cannot be found, without any credentials."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        super().__init__(re.sub(r"//[^/@]*@", "//", f"Template: {reason}"))


def template(options: argparse.Namespace) -> NoReturn:
    """Replace this process with `trackbed`, the template's command for its projects.

    `uvx` runs it from the template's newest release. It has to work before the dependencies are
    installed, so everything from here on needs nothing but Python's standard library. Its exit code
    is 0 if this is in step, 1 if it is behind, changed or has something to settle, and 2 if that
    cannot be told or done.

    Raises:
        TemplateError: There is no `uvx`, no version recorded, or no release to take it from.
    """
    file, version, source = recorded()
    address = address_of(source)
    uvx = find_uvx()
    package = f"git+{address}@{newest_release(address, version)}"
    run = [*uvx, "--quiet", "--python", sys.executable, "--from", package, "trackbed"]
    os.execv(uvx[0], [*run, "-C", str(ROOT), options.task, *options.options, "-a", file])


def find_uvx() -> list[str]:
    """Return the command that runs a package. `uv run` sets UV to the place of uv."""
    if uvx := shutil.which("uvx"):
        return [uvx]
    if uv := os.environ.get("UV") or shutil.which("uv"):
        return [uv, "tool", "run"]
    raise TemplateError(
        "uvx is missing, which runs its command; install uv (https://docs.astral.sh/uv/)."
    )


def recorded() -> tuple[str, str, str]:
    """Return the name of the template's answers file, with the version and the source in it.

    Raises:
        TemplateError: It is missing, is not the only one, or lacks one of both.
    """
    files = sorted(ROOT.glob(".copier-answers*.y*ml"))
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    # Another template may have left its answers as well, but this one asks for the volume
    ours = [name for name, text in texts.items() if re.search("^volume_path: ", text, re.M)]
    if len(ours) != 1:
        told = f"keep one of {', '.join(ours)}" if ours else ".copier-answers.yml is missing"
        raise TemplateError(f"{told}; take it from the repository's history.")
    # YAML breaks a long text into several lines
    text = texts[ours[0]].replace("\n  ", " ")
    version, source = (re.search(f"^{key}: (.+)$", text, re.M) for key in ("_commit", "_src_path"))
    if version is None or source is None:
        raise TemplateError(
            f"{ours[0]} has no version of the template. The project was copied from one "
            "without releases; copy it again over this one from a release."
        )
    return ours[0], unquoted(version[1]), unquoted(source[1])


def unquoted(text: str) -> str:
    """Return a text as it was before YAML quoted it."""
    is_quoted = text.startswith("'") and text.endswith("'")
    return text[1:-1].replace("''", "'") if is_quoted else text


def address_of(source: str) -> str:
    """Return the address of one of Copier's sources, in the form that git and uv take.

    Raises:
        TemplateError: It is a relative path that leads to no template from here.
    """
    for short, host in {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}.items():
        if source.startswith(short):
            return f"{host}{source.removeprefix(short).lstrip('/').removesuffix('.git')}.git"
    source = source.removeprefix("git+")
    if "://" in source:
        return source
    if re.match(r"[\w.-]+@[\w.-]+:", source):
        return f"ssh://{source.replace(':', '/', 1)}"
    given = Path(source).expanduser()
    path = (ROOT / given).resolve()
    if not given.is_absolute() and not (path / "copier.yml").is_file():
        raise TemplateError(
            f"{source} led to the template only from where this was copied; write its "
            "address into _src_path of .copier-answers.yml, and commit that."
        )
    return path.as_uri()


def newest_release(address: str, version: str) -> str:
    """Return the tag of the newest release, which is not older than the recorded version.

    Raises:
        TemplateError: The template cannot be asked, or has none.
    """
    try:
        done = subprocess.run(
            ["git", "ls-remote", "--tags", "--refs", "--", address],  # noqa: S607
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "no answer in 120 s"
        raise TemplateError(f"git cannot ask {address}: {reason}.") from None
    if done.returncode:
        told = re.search(r"^(?:fatal|error): (.+)", done.stderr, re.M | re.I)
        raise TemplateError(
            f"{address} cannot be read: {told[1] if told else 'git failed'}; if the template is "
            "somewhere else, write its address into _src_path of .copier-answers.yml, and commit "
            "that."
        )
    found = re.findall(r"\trefs/tags/(v?\d+(?:\.\d+)*)$", done.stdout, re.M)
    newest = max(found, key=number, default="")
    # A commit that is no release is recorded by its hash, whose first digits are no version
    known = () if re.fullmatch(r"[0-9a-f]{7,64}", version) else number(version)
    if not newest or number(newest) < known:
        raise TemplateError(
            f"{address} has no release that is {version} or newer; fetch its tags there."
        )
    return newest


def number(version: str) -> tuple[int, ...]:
    """Return a version as numbers to compare, or nothing if it is no version."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, match[1].split("."))) if match else ()
