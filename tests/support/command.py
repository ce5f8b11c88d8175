"""The copier command, in a child that has imported it, and compiled the template, already."""

import os
import runpy
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import NoReturn

from plumbum.machines.local import LocalEnv, LocalMachine

TIMEOUT = 300


def run_copier(arguments: Sequence[str], cwd: Path | None = None) -> CompletedProcess[str]:
    """Do what `python -m copier` does without a terminal, in a third of its time."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if not child:
            become(arguments, cwd or Path.cwd(), stdout.fileno(), stderr.fileno())
        _, status = os.waitpid(child, 0)
        printed = []
        for file in (stdout, stderr):
            file.seek(0)
            printed.append(file.read().decode("utf-8"))
    return CompletedProcess(["copier", *arguments], os.waitstatus_to_exitcode(status), *printed)


def become(arguments: Sequence[str], cwd: Path, stdout: int, stderr: int) -> NoReturn:
    """Be that command, and nothing of the process of the tests."""
    status: object = 1
    try:
        signal.alarm(TIMEOUT)
        for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), stdout, stderr)):
            os.dup2(source, target)
        sys.stdin = os.fdopen(0)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
        # pytest keeps warnings for itself
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.showwarning = show
        # Copier runs git through it, and it has read the environment before
        LocalMachine.env = LocalEnv()
        LocalMachine.clear_program_cache()
        os.chdir(cwd)
        sys.argv = ["copier", *arguments]
        runpy.run_module("copier", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def show(message: Warning | str, category: type[Warning], name: str, line: int, *_: object) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, name, line))
