"""Imports go one way: find, plan, widen, train, save, load. Those inside functions count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fpe_hf

PACKAGE = Path(fpe_hf.__file__).parent
FILES = {
    ".".join(("fpe_hf", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in PACKAGE.rglob("*.py")
}


def imports(name: str) -> Iterator[str]:
    """The modules of fpe_hf that a module of it imports, but for those that only types name."""
    path = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if node in typed or not isinstance(node, ast.ImportFrom):
            continue
        above = package.split(".")[: 1 - node.level or None] if node.level else []
        module = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:
            found = next((m for m in (f"{module}.{alias.name}", module) if m in FILES), None)
            if found is not None and found != "fpe_hf":
                yield found


def order(graph: dict[str, set[str]]) -> list[str]:
    return list(TopologicalSorter(graph).static_order())


def test_no_two_modules_import_each_other() -> None:
    graph = {name: set(imports(name)) - {name} for name in FILES if name != "fpe_hf"}
    assert len(order(graph)) == len(graph)


def test_no_two_packages_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for name in FILES:
        if name != "fpe_hf" and not name.endswith("__main__"):
            top = name.split(".")[1]
            others = {other.split(".")[1] for other in imports(name)} - {top}
            graph.setdefault(top, set()).update(others)
    found = order(graph)
    way = ("discovery", "planning", "layers", "checkpoint", "conversion", "recipes", "hub", "cli")
    places = [found.index(name) for name in way if name != "hub"]
    assert places == sorted(places)


def test_a_cycle_is_seen() -> None:
    with pytest.raises(CycleError):
        order({"one": {"other"}, "other": {"one"}})
