"""The commands. Each imports only what it needs."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.errors import FleetError
from fleet.git import isolate
from fleet.model import Drift, Forecast, Inventory, Item, Service, Update
from fleet.services import find
from fleet.show import show, write_csv
from fleet.templates import Template, find_template, questions

if TYPE_CHECKING:
    from fleet.attempt import Job

EXIT_CODES = (
    "Exit codes: 0 all is well; 1 at least one service is not: it cannot be read or dealt with, "
    "differs, breaks a rule, cannot be updated cleanly; 2 the command, repos.toml, the rules or "
    "the revision are mistaken; 130 interrupted."
)

app = typer.Typer(
    name="trackbed-fleet",
    help="Many services made from a Copier template: versions, drift, rules, and what an update "
    f"would do to each.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Paths = Annotated[
    list[str] | None,
    typer.Argument(help="services: directories, directories of such, or addresses of git"),
]
Repos = Annotated[
    Path | None,
    typer.Option("--repos", help="a file of [[service]] tables: name, path or url, branch"),
]
From = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="the template's directory or address; by default the current directory, if it is one, "
        "and else what each service records",
    ),
]
Addresses = Annotated[
    list[str] | None,
    typer.Option("--address", help="a further address under which services record the template"),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="at once", show_default="one a core")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs; fields are in fleet/model.py")]
Trust = Annotated[
    bool, typer.Option("--trust", help="let templates run their commands, as copier --trust does")
]
CORES = os.cpu_count() or 1
TEST = "uv run pytest"


def main() -> None:
    """The command `trackbed-fleet`."""
    isolate()
    try:
        app()
    except FleetError as error:
        print(f"trackbed-fleet: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


@app.command(epilog=EXIT_CODES)
def inventory(
    paths: Paths = None,
    repos: Repos = None,
    template: From = None,
    address: Addresses = None,
    jobs: Jobs = CORES,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="for spreadsheets")] = False,
) -> None:
    """Each service's version of the template, how old and how far behind it is, and its answers."""
    items = take(find(paths or [], repos), find_template(template, address or []), jobs)
    problems = sum(item.problem is not None for item in items)
    summary = f"{count(items)}, {problems} with problems"
    if as_csv:
        write_csv(items)
    else:
        show("inventory", items, ok=not problems, summary=summary, as_json=as_json)
    raise typer.Exit(bool(problems))


@app.command(epilog=EXIT_CODES)
def drift(
    paths: Paths = None,
    repos: Repos = None,
    template: From = None,
    address: Addresses = None,
    ownership: Annotated[
        Path | None,
        typer.Option(help="which paths are the template's; by default its ownership.toml"),
    ] = None,
    jobs: Jobs = CORES,
    as_json: AsJson = False,
    trust: Trust = False,
) -> None:
    """The template's own files that are not as the recorded version renders them."""
    from fleet.drift import DriftJob, examine
    from fleet.prepare import Wanted, in_each
    from fleet.templates import read_ownership

    named = find_template(template, address or [])
    file = ownership or Path(named.address if named else ".") / "ownership.toml"
    owned = read_ownership(file)
    items = in_each(
        find(paths or [], repos),
        named,
        Wanted(stay=True),
        partial(DriftJob, ownership=owned),
        examine,
        Drift,
        jobs=jobs,
        label="Comparing",
        trust=trust,
    )
    broken = [item for item in items if item.problem]
    differing = [item for item in items if item.changed or item.missing]
    summary = f"{count(items)}, {len(differing)} with drift, {len(broken)} with problems"
    ok = not broken and not differing
    show("drift", items, ok=ok, summary=summary, as_json=as_json)
    raise typer.Exit(not ok)


@app.command(epilog=EXIT_CODES)
def policy(
    rules: Annotated[Path, typer.Argument(metavar="FILE", help="the rules, one a line")],
    paths: Paths = None,
    repos: Repos = None,
    template: From = None,
    address: Addresses = None,
    jobs: Jobs = CORES,
    as_json: AsJson = False,
) -> None:
    """Which services break which rules, such as: backup != none, version >= 0.2."""
    from fleet.policy import judge, read_rules, require_known

    read = read_rules(rules)
    named = find_template(template, address or [])
    items = take(find(paths or [], repos), named, jobs)
    known = questions(named) | {name for item in items for name in item.answers}
    require_known(read, known, rules)
    judged = judge(items, read)
    breaking = sum(bool(item.violations) for item in judged)
    problems = sum(item.problem is not None for item in judged)
    summary = f"{count(judged)}, {breaking} break rules, {problems} with problems"
    ok = not breaking and not problems
    show("policy", judged, ok=ok, summary=summary, as_json=as_json)
    raise typer.Exit(not ok)


@app.command(epilog=EXIT_CODES)
def forecast(
    paths: Paths = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="REF",
            help="a tag, branch or commit of the template; HEAD takes its working tree as well; "
            "by default the last release",
        ),
    ] = None,
    repos: Repos = None,
    template: From = None,
    address: Addresses = None,
    jobs: Jobs = CORES,
    as_json: AsJson = False,
    trust: Trust = False,
) -> None:
    """What copier update would do to each service. Touches none of them; go or no-go at the end."""
    from fleet.forecast import decide, predict
    from fleet.prepare import Wanted, in_each

    items = in_each(
        find(paths or [], repos),
        find_template(template, address or []),
        Wanted(to, working_tree=True),
        same,
        predict,
        Forecast,
        jobs=jobs,
        label="Forecasting",
        trust=trust,
    )
    ok, summary = decide(items)
    target = next((item.target for item in items if item.target), to)
    show("forecast", items, ok=ok, summary=summary, as_json=as_json, target=target)
    raise typer.Exit(not ok)


@app.command(epilog=EXIT_CODES)
def update(
    paths: Paths = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="REF", help="a release; by default the last one"),
    ] = None,
    test: Annotated[str, typer.Option(help="what has to succeed")] = TEST,
    no_test: Annotated[bool, typer.Option("--no-test", help="make untested branches")] = False,
    branch: Annotated[
        str | None, typer.Option(help="the new branch", show_default="template-RELEASE")
    ] = None,
    repos: Repos = None,
    template: From = None,
    address: Addresses = None,
    jobs: Jobs = CORES,
    as_json: AsJson = False,
    trust: Trust = False,
) -> None:
    """Update each on a new branch, unless that conflicts or its tests fail. Never pushes."""
    from fleet.prepare import Wanted, in_each
    from fleet.update import UpdateJob, branch_name, check_test
    from fleet.update import update as update_service

    check_test(test)

    def order(job: "Job") -> UpdateJob:
        return UpdateJob(job, branch or branch_name(job.step.name), None if no_test else test)

    items = in_each(
        find(paths or [], repos),
        find_template(template, address or []),
        Wanted(to, release_only=True),
        order,
        update_service,
        Update,
        jobs=jobs,
        label="Updating",
        trust=trust,
    )
    done = {name: sum(item.outcome == name for item in items) for name in OUTCOMES}
    summary = f"{count(items)}: {', '.join(f'{n} {name}' for name, n in done.items() if n)}"
    ok = not done["failed"] and not done["refused"]
    target = next((item.target for item in items if item.target), to)
    show("update", items, ok=ok, summary=summary, as_json=as_json, target=target)
    raise typer.Exit(not ok)


OUTCOMES = ("updated", "current", "failed", "refused")


def take(services: Sequence[Service], template: Template | None, jobs: int) -> list[Inventory]:
    from fleet.inventory import take as take_inventory

    return take_inventory(services, template, jobs)


def same(job: "Job") -> "Job":
    return job


def count(services: Sequence[Item]) -> str:
    return f"{len(services)} {'service' if len(services) == 1 else 'services'}"


if __name__ == "__main__":
    main()
