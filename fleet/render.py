"""Copier in this process. Only the processes that render import it: that takes longer than git."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import copier
import copier._template as copier_template
from copier.errors import CopierError, UnsafeTemplateError

from fleet.errors import ServiceError, one_line

# Copier gives the renders that an update makes for itself such a name, and in them our
# template takes for granted what was recorded.
PREFIX = "copier._main.fleet"


class TrustNeeded(Exception):
    """The template runs commands or loads code."""


@contextmanager
def prepared(old: Path, new: Path, target: str, base: Path) -> Iterator[None]:
    """Let Copier take the commits of a template from where they are checked out already.

    It clones the template four times for an update. That what it gets is the same, and
    that it still asks, is tested.
    """

    def clone(url: str, ref: str = "HEAD", location: str | None = None) -> str:
        return str(new if ref == target else old)

    original = copier_template.clone  # type: ignore[attr-defined]
    copier_template.clone = clone  # type: ignore[attr-defined]
    try:
        with (
            chdir(base),  # `_src_path` may be relative to the project
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    except UnsafeTemplateError as error:
        raise TrustNeeded(one_line(error)) from None
    except (CopierError, OSError, ValueError, TypeError) as error:
        raise ServiceError(f"Copier: {one_line(error)}") from None
    except Exception as error:  # Jinja's and git's own, and whatever a template makes Copier raise
        raise ServiceError(f"Copier: {type(error).__name__}: {one_line(error)}") from None
    finally:
        copier_template.clone = original  # type: ignore[attr-defined]


def update(project: Path, target: str, *, trust: bool) -> None:
    copier.run_update(
        project, vcs_ref=target, defaults=True, overwrite=True, quiet=True, unsafe=trust
    )


def copy(source: str, destination: Path, recorded: Mapping[str, Any], *, trust: bool) -> None:
    """What a commit renders with the answers that an answers file has; its tasks are not run."""
    copier.run_copy(
        source,
        destination,
        data={key: value for key, value in recorded.items() if not key.startswith("_")},
        vcs_ref=str(recorded["_commit"]),
        defaults=True,
        overwrite=True,
        quiet=True,
        skip_tasks=True,
        unsafe=trust,
    )
