"""Copier in this process. Only processes that render import it, as that takes longer than git."""

import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import (
    chdir,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from pathlib import Path
from typing import Any

import copier
import jinja2
from copier.errors import CopierError, UnsafeTemplateError
from jinja2_ansible_filters import core_filters

from trackbed.bounded import MEGABYTE
from trackbed.errors import ServiceError, one_line
from trackbed.internals import Worker
from trackbed.internals import template as copier_template


class TrustNeeded(Exception):
    """Error for a template that runs commands or loads code."""


SYNTAX = (
    "block_start_string",
    "block_end_string",
    "variable_start_string",
    "variable_end_string",
    "comment_start_string",
    "comment_end_string",
    "line_statement_prefix",
    "line_comment_prefix",
    "trim_blocks",
    "lstrip_blocks",
    "newline_sequence",
    "keep_trailing_newline",
    "undefined",
    "optimized",
    "autoescape",
)
RENDERED = 200_000
BYTES = 1024 * MEGABYTE
"""Maximum number of files and directories in one service, and of their bytes."""
render_afresh: Any = Worker._render_file
make_folder_afresh: Any = Worker._render_folder


class Nothing:
    """Replacement of the module `glob` for a template that may not see which files there are."""

    @staticmethod
    def glob(pattern: str) -> list[str]:
        return []


compiled: dict[tuple[Any, ...], Any] = {}
compile_afresh: Any = jinja2.Environment.compile


def compile_once(
    environment: jinja2.Environment,
    source: Any,
    name: str | None = None,
    filename: str | None = None,
    raw: bool = False,
    defer_init: bool = False,
) -> Any:
    """Compile a text only once, because the same text in the same syntax is the same code."""
    if not isinstance(source, str):
        return compile_afresh(environment, source, name, filename, raw, defer_init)
    syntax = (type(environment), *(getattr(environment, option) for option in SYNTAX))
    key = (syntax, *environment.extensions, source, name, filename, raw, defer_init)
    if key not in compiled:
        compiled[key] = compile_afresh(environment, source, name, filename, raw, defer_init)
    return compiled[key]


@contextmanager
def patched(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def prepared(
    old: Path, new: Path, target: str, scratch: Path, *, own: bool = True
) -> Iterator[None]:
    """Let Copier take the commits of a template from where they are checked out already.

    Copier makes its own files below `scratch` meanwhile. A template that is not the person's `own`
    sees no other file of the machine, and may make only a limited number of files and bytes.

    For an update, Copier clones the template four times, compiles every name and file three times,
    and asks git for every file whether modes count, which on POSIX they do. Here this happens once
    for many services. The result is the same. A test compares it with that of `copier update`.
    """

    def clone(url: str, ref: str = "HEAD", location: str | None = None) -> str:
        return str(new if ref == target else old)

    def is_git(url: str) -> str:
        return url  # Copier would open a directory of that name to find out

    def leave_mode(worker: Any, path: Path, mode: int) -> None:
        pass

    made = [0, 0]

    def render_file(worker: Any, source: Path, name: Path, extra_context: Any = None) -> None:
        render_afresh(worker, source, name, extra_context=extra_context)
        with suppress(OSError):
            made[1] += (worker.subproject.local_abspath / name).lstat().st_size
        count()

    def render_folder(worker: Any, name: Path) -> None:
        make_folder_afresh(worker, name)
        count()

    def count() -> None:
        made[0] += 1
        if made[0] > RENDERED or made[1] > BYTES:
            raise ServiceError(f"the template makes more than {RENDERED} files, or than 1 GB")

    try:
        with (
            patched(copier_template, "clone", clone),
            nullcontext() if own else patched(core_filters, "glob", Nothing),
            patched(Worker, "_render_file", render_file),
            patched(Worker, "_render_folder", render_folder),
            patched(copier_template, "get_repo", is_git),
            patched(tempfile, "tempdir", str(scratch)),
            patched(jinja2.Environment, "compile", compile_once),
            patched(Worker, "_sync_git_index_executable_bit", leave_mode)
            if os.name == "posix"
            else nullcontext(),
            chdir(scratch),
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    except ServiceError:
        raise
    except UnsafeTemplateError as error:
        raise TrustNeeded(str(error).partition("\n")[0]) from None
    except (CopierError, OSError, ValueError, TypeError) as error:
        raise ServiceError(f"Copier: {one_line(error)}") from None
    except MemoryError:
        raise ServiceError("Copier: it takes more memory than a service may") from None
    except Exception as error:  # A template can make Copier, Jinja and git raise any error
        raise ServiceError(f"Copier: {type(error).__name__}: {one_line(error)}") from None


def update(
    project: Path,
    target: str,
    *,
    trust: bool,
    answers_file: str,
    data: Mapping[str, str] | None = None,
) -> None:
    copier.run_update(
        project,
        data=dict(data or {}),
        vcs_ref=target,
        answers_file=answers_file,
        defaults=True,
        overwrite=True,
        quiet=True,
        unsafe=trust,
    )


def copy(recorded: Mapping[str, Any], destination: Path, *, trust: bool, answers_file: str) -> None:
    """Render a commit with the answers of an answers file. Its tasks are not run."""
    copier.run_copy(
        str(recorded["_src_path"]),
        destination,
        data={key: value for key, value in recorded.items() if not key.startswith("_")},
        vcs_ref=str(recorded["_commit"]),
        answers_file=answers_file,
        defaults=True,
        overwrite=True,
        quiet=True,
        skip_tasks=True,
        unsafe=trust,
    )
