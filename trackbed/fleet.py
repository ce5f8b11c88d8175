"""Commands for many services. Each imports only the modules that it needs."""

import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from trackbed import collect
from trackbed.errors import FleetError
from trackbed.model import Findings
from trackbed.services import find
from trackbed.show import show, write_csv
from trackbed.templates import Fleet, find_template

EXIT_CODES = (
    "Exit codes: 0 all is well; 1 at least one service is not: it cannot be read or dealt with, "
    "differs, breaks a rule, cannot be updated cleanly; 2 the command, repos.toml, the rules or "
    "the revision are mistaken; 130 interrupted."
)
REPORT_CODES = (
    "Exit codes: 0 the page is written, whatever it says of the services; 2 the command, "
    "repos.toml, the rules, the revision or the file are mistaken; 130 interrupted."
)

app = typer.Typer(
    name="fleet",
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
AsJson = Annotated[
    bool, typer.Option("--json", help="for programs; fields are in trackbed/model.py")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="let the template of --template run its commands, as copier --trust does"
    ),
]
Ownership = Annotated[
    Path | None,
    typer.Option(
        "--ownership", help="which paths are the template's; by default its ownership.toml"
    ),
]
CORES = os.cpu_count() or 1
TEST = "uv run pytest"


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
    """List each service's version of the template, how old or far behind it is, and its answers."""
    found = collect.inventory(fleet_of(paths, repos, template, address, jobs))
    if as_csv:
        write_csv(found.items)
    else:
        show(found, as_json=as_json)
    raise typer.Exit(not found.ok)


@app.command(epilog=EXIT_CODES)
def drift(
    paths: Paths = None,
    repos: Repos = None,
    template: From = None,
    address: Addresses = None,
    ownership: Ownership = None,
    jobs: Jobs = CORES,
    as_json: AsJson = False,
    trust: Trust = False,
) -> None:
    """List the template's own files that are not as the recorded version renders them."""
    fleet = fleet_of(paths, repos, template, address, jobs, trust=trust)
    finish(collect.drift(fleet, collect.read_owned(fleet, ownership)), as_json)


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
    """List the services that break rules, such as backup != none or version >= 0.2."""
    from trackbed.policy import read_rules

    read = read_rules(rules)
    fleet = fleet_of(paths, repos, template, address, jobs)
    finish(collect.policy(fleet, collect.inventory(fleet).items, read, rules), as_json)


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
    """Tell what copier update would do to each service, without a change. Ends with go or no-go."""
    fleet = fleet_of(paths, repos, template, address, jobs, trust=trust)
    finish(collect.forecast(fleet, to), as_json)


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
    """Update each on a new branch, unless that conflicts or its tests fail. Never pushes.

    The tests are the service's own code, and run as you: without variables that may hold secrets,
    for half an hour at most, and with 4 GB of memory each process.
    """
    from trackbed.update import check_test

    check_test(test)
    fleet = fleet_of(paths, repos, template, address, jobs, trust=trust)
    finish(collect.update(fleet, to, branch=branch, test=None if no_test else test), as_json)


@app.command(epilog=REPORT_CODES)
def report(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.html", help="the file; one that is there has to be an earlier report"
        ),
    ],
    paths: Paths = None,
    repos: Repos = None,
    template: From = None,
    address: Addresses = None,
    with_drift: Annotated[bool, typer.Option("--drift", help="with drift")] = False,
    ownership: Ownership = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="with the rules of policy that are broken")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="REF", help="with the forecast of an update to it")
    ] = None,
    jobs: Jobs = CORES,
    trust: Trust = False,
) -> None:
    """Write one page for a browser in one file, with charts and a table to sort and filter."""
    from trackbed.policy import read_rules
    from trackbed.report import Overview, render, require_writable, write
    from trackbed.templates import Catalogue

    require_writable(out)
    if ownership and not with_drift:
        raise FleetError("--ownership is for --drift")
    read = read_rules(rules) if rules else []
    fleet = fleet_of(paths, repos, template, address, jobs, trust=trust)
    owned = collect.read_owned(fleet, ownership) if with_drift else None
    catalogue = Catalogue(fleet.template)
    inventory = collect.inventory(fleet, catalogue)
    overview = Overview(
        fleet.template,
        catalogue.own,
        inventory,
        policy=collect.policy(fleet, inventory.items, read, rules) if rules else None,
        drift=collect.drift(fleet, owned) if owned else None,
        forecast=collect.forecast(fleet, to) if to else None,
    )
    write(out, render(overview.document()))
    print(f"{out}: {overview.summary()}")


def fleet_of(
    paths: list[str] | None,
    repos: Path | None,
    template: str | None,
    address: list[str] | None,
    jobs: int,
    *,
    trust: bool = False,
) -> Fleet:
    """Find the services and the template.

    Raises:
        FleetError: there are no services, or the path that is named is no template.
    """
    found = find(paths or [], repos)
    own = find_template(template, address or [])
    if trust and own is None:
        raise FleetError("--trust is for the template of --template, and of no other")
    return Fleet(found, own, jobs, trust)


def finish(found: Findings[Any], as_json: bool) -> NoReturn:
    show(found, as_json=as_json)
    raise typer.Exit(not found.ok)
