# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Command `python -m app check`, which runs the checks, here or on variables from elsewhere."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Final, get_args

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from app.chassis import assembly
from app.chassis.checks import deployment, service
from app.chassis.checks.finding import Finding, FindingStatus, failed, ok, skipped
from app.chassis.errors import ConfigurationError, StartupError
from app.chassis.sqlite import probes

KEPT: Final = ("HOME", "PATH", "SSL_CERT_FILE", "TMPDIR", "UV")


def run(variables: Mapping[str, str] | None = None) -> list[Finding]:
    """Run every check that applies.

    Args:
        variables: Variables of a deployment, which are checked instead of this process's
            environment and .env. Facts that only its machine knows, such as the volume, are left
            out.
    """
    here = variables is None
    kind = assembly.settings_class()
    with environment(variables):
        try:
            settings = kind.load() if here else kind.load(_env_file=None)
        except ConfigurationError as error:
            wrong = [service.of_setting("failed", text) for text in error.problems]
            return [*wrong, skipped("rest", "needs valid settings"), *deployment.check()]
        findings = [ok("settings", f"{len(kind.model_fields)} settings are valid")]
        findings += service.check(settings, os.environ)
        if here:
            findings += readable("volume", probes.check(settings, assembly.metadata()))
            findings.append(service.memory(settings))
        else:
            findings.append(probes.database_path(settings))
            unknown = "only known where it is mounted: run `check` there as well"
            findings.append(skipped("volume", unknown))
        findings += readable("backup.newest", assembly.check_backup(settings))
        findings += assembly.check_features(settings)
        findings += deployment.check()
        findings.append(service.routes(settings))
    return findings


def readable(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield findings, and a failed one in place of the rest where this user may not look."""
    try:
        yield from findings
    except PermissionError as error:
        verdict = f"{error.filename} cannot be read as uid {os.geteuid()}"
        yield failed(name, verdict, "run `check` as the service's user")


@contextmanager
def environment(variables: Mapping[str, str] | None) -> Iterator[None]:
    """Set only these variables and those that programs need to run. None changes nothing."""
    if variables is None:
        yield
        return
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({name: before[name] for name in KEPT if name in before})
    os.environ.update(variables)
    # A deployment is production unless its variables say otherwise
    if not variables.get("RAILWAY_ENVIRONMENT_ID", "").strip():
        os.environ.setdefault("ENVIRONMENT", "production")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def read_variables(source: str) -> dict[str, str]:
    """Read variables from the output of `railway variable list --json` or from an env file.

    Args:
        source: A file, or `-` for standard input.

    Raises:
        StartupError: The source cannot be read, or is neither of the two.
    """
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise StartupError(f"Check: {source} cannot be read: {reason}.") from None
    is_json = text.lstrip().startswith(("{", "["))
    found = from_json(text, source) if is_json else from_lines(text, source)
    # No process can have such variables, and os.environ refuses them with an error of its own
    if any(not name or "=" in name or "\0" in name + value for name, value in found.items()):
        raise StartupError(f"Check: {source} has a name or a value that no variable can have.")
    return found


def from_json(text: str, source: str) -> dict[str, str]:
    """Read an object of names and values, or a list of objects with `name` and `value`."""
    try:
        given = json.loads(text)
        if isinstance(given, list):
            given = {entry["name"]: entry["value"] for entry in given}
        if not all(isinstance(value, str | int | float) for value in given.values()):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise StartupError(
            f"Check: {source} looks like JSON, but is no object of names and values; "
            "pipe `railway variable list --json` into it."
        ) from None
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in given.items()
    }


def from_lines(text: str, source: str) -> dict[str, str]:
    """Read an env file with python-dotenv, as the service itself does."""
    for statement in parse_stream(StringIO(text)):
        if statement.error:
            # The message never shows the line itself, which may hold a secret
            line = statement.original.line
            raise StartupError(f"Check: line {line} of {source} is not of the form NAME=VALUE.")
    given = dotenv_values(stream=StringIO(text))
    found = {name: value for name, value in given.items() if value is not None}
    if not found:
        raise StartupError(f"Check: {source} has no variables in it.")
    return found


def is_failed(findings: Iterable[Finding]) -> bool:
    return any(finding.status == "failed" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """Return a JSON object with the status of the whole and every finding."""
    status = "failed" if is_failed(findings) else "ok"
    listed = [finding._asdict() for finding in findings]
    return json.dumps({"status": status, "findings": listed}, indent=2)


def as_text(findings: Sequence[Finding]) -> str:
    """Return a line for every finding, another one for its advice, and one that counts them."""
    width = max(len(finding.id) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8} {finding.id:<{width}}  {finding.verdict}")
        if finding.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.advice}")
    counts = Counter(finding.status for finding in findings)
    lines.append(", ".join(f"{counts[status]} {status}" for status in get_args(FindingStatus)))
    return "\n".join(lines)
