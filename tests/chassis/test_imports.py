"""Imports inside the chassis: values at the ground, assembly at the top, and no circle."""

import ast
import inspect
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import app.chassis

HERE = Path(inspect.getfile(app.chassis)).parent
MODULES = {
    ".".join(("app.chassis", *path.relative_to(HERE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in HERE.rglob("*.py")
}


def run(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a module that Python runs, those inside functions among them."""
    for part in ast.iter_child_nodes(node):
        if not (isinstance(part, ast.If) and "TYPE_CHECKING" in ast.dump(part.test)):
            yield part
            yield from run(part)


def imported(path: Path) -> set[str]:
    found = set()
    for node in run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below & MODULES.keys() or {node.module}
    return found & MODULES.keys()


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imported(path) - {name} for name, path in MODULES.items()}

    order = list(TopologicalSorter(graph).static_order())

    assert set(order) == MODULES.keys()
    assert graph["app.chassis.answers"] == set()
