"""The public names of the chassis are imported from app.chassis, and only when asked for."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import app.chassis
from app.chassis import MODULES, PLACES

HERE = Path(inspect.getfile(app.chassis))


def test_the_type_checker_sees_what_python_does() -> None:
    seen = {
        (node.module, alias.name, alias.asname)
        for node in ast.walk(ast.parse(HERE.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("app.")
        for alias in node.names
    }
    assert seen == {(f"app.chassis.{module}", name, name) for name, module in PLACES.items()}


@pytest.mark.parametrize("name", PLACES)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(app.chassis, name) is not None
    assert name in dir(app.chassis)


def test_who_uses_the_chassis_reads_no_more_than_520_lines() -> None:
    told = re.search(r"To use the chassis, read (.+?)\. ", app.chassis.__doc__ or "")
    assert told is not None
    files = ["__init__.py", *re.findall(r"\w+\.py", told[1])]
    assert files == ["__init__.py", "database.py", "routing.py", "streaming.py"]
    lines = [HERE.with_name(file).read_text(encoding="utf-8").count("\n") for file in files]
    assert sum(lines) <= 520


def test_another_name_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Readers'"):
        _ = app.chassis.Readers  # type: ignore[attr-defined]


def test_it_loads_only_what_is_asked_for() -> None:
    code = """if True:
        import sys
        import app.chassis
        before = {name for name in sys.modules if name.startswith("app.chassis.")}
        from app.chassis import now
        print(sorted(before), "fastapi" in sys.modules)
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"


def test_every_module_is_in_the_map() -> None:
    """A module that only some answers bring is not, and says itself what it is."""
    modules = {path.stem for path in HERE.parent.glob("*.py")}
    said = set(re.findall(r"\w+", app.chassis.__doc__ or ""))
    assert modules - said <= {"__init__", "proxies"}
    assert MODULES.keys() <= modules
