"""The order of a set differs from process to process: nothing that anybody sees may follow it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fpe_hf

PACKAGE = Path(fpe_hf.__file__).parent
MAKERS = {"set", "frozenset"}
METHODS = {"union", "intersection", "difference", "symmetric_difference"}
INDIFFERENT = {"sorted", "len", "any", "all", "sum", "min", "max", "bool", *MAKERS}
"""What comes out of these does not depend on the order of what goes in. `sum` is of integers."""
INDIFFERENT_METHODS = {"update", "isdisjoint", "issubset", "issuperset", *METHODS}
ORDERED = {"list", "tuple", "iter", "enumerate", "next", "str", "repr", "zip", "map", "filter"}


class Sets(ast.NodeVisitor):
    """Finds where the order of a set shows, in a function or a module.

    Attributes:
        names: Names that are sets there.
        found: Line and expression.
    """

    def __init__(self, body: ast.AST, outer: frozenset[str] = frozenset()) -> None:
        own = dict(_assigned(body, outer))
        self.names = frozenset({n for n in outer if n not in own} | {n for n in own if own[n]})
        self.found: list[tuple[int, str]] = []
        for child in ast.iter_child_nodes(body):
            self.visit(child)

    def is_set(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.Set, ast.SetComp)):
            return True
        if isinstance(node, ast.Name):
            return node.id in self.names
        if isinstance(node, ast.Call):
            name, owner = _called(node)
            return name in (MAKERS if owner is None else METHODS)
        if isinstance(node, ast.BinOp):
            sides = (node.left, node.right)
            if isinstance(node.op, (ast.BitAnd, ast.BitOr, ast.BitXor, ast.Sub)):
                return any(self.is_set(side) or _is_view(side) for side in sides)
        return isinstance(node, ast.IfExp) and (self.is_set(node.body) or self.is_set(node.orelse))

    def note(self, node: ast.AST) -> None:
        if self.is_set(node):
            self.found.append((node.lineno, ast.unparse(node)))

    def visit_scope(self, node: ast.AST) -> None:
        self.found += Sets(node, self.names).found

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = visit_scope

    def visit_For(self, node: ast.For) -> None:
        self.note(node.iter)
        self.generic_visit(node)

    def visit_comprehension_of(self, node: ast.ListComp | ast.DictComp | ast.GeneratorExp) -> None:
        for generator in node.generators:
            self.note(generator.iter)
        self.generic_visit(node)

    visit_ListComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_of

    def visit_Starred(self, node: ast.Starred) -> None:
        self.note(node.value)
        self.generic_visit(node)

    def visit_Set(self, node: ast.Set) -> None:
        for item in node.elts:
            self.visit(item.value if isinstance(item, ast.Starred) else item)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        self.note(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name, owner = _called(node)
        loose = name in INDIFFERENT if owner is None else name in INDIFFERENT_METHODS
        if name == "join" or (owner is None and name in ORDERED):
            for argument in node.args:
                self.note(argument)
        for child in (node.func, *node.args, *(keyword.value for keyword in node.keywords)):
            if loose and isinstance(child, ast.GeneratorExp):
                for inner in ast.iter_child_nodes(child):
                    self.visit(inner)
            else:
                self.visit(child)


def _called(node: ast.Call) -> tuple[str, ast.AST | None]:
    """The name of what is called, and whose method it is."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr, node.func.value
    return (node.func.id if isinstance(node.func, ast.Name) else ""), None


def _is_view(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _called(node)[0] in ("keys", "items")


def _assigned(body: ast.AST, outer: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """The names that a function or a module assigns to, and whether those are sets."""
    known = Sets.__new__(Sets)
    known.names = outer
    queue = list(ast.iter_child_nodes(body))
    while queue:
        node = queue.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        queue += ast.iter_child_nodes(node)
        if isinstance(node, ast.arg):
            yield node.arg, _is_set_type(node.annotation)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, _is_set_type(node.annotation)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    is_set = known.is_set(node.value)
                    known.names = frozenset({*known.names, target.id}) if is_set else known.names
                    yield target.id, is_set


def _is_set_type(annotation: ast.AST | None) -> bool:
    text = "" if annotation is None else ast.unparse(annotation)
    return text.startswith(("set[", "frozenset[", "Set["))


def faults(code: str) -> list[tuple[int, str]]:
    return Sets(ast.parse(code)).found


@pytest.mark.parametrize("room", sorted(p.name for p in PACKAGE.iterdir() if p.name[0] != "_"))
def test_no_order_is_that_of_a_set(room: str) -> None:
    place = PACKAGE / room
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {expression}"
        for path in (place.rglob("*.py") if place.is_dir() else [place])
        for line, expression in faults(path.read_text(encoding="utf-8"))
    ]
    assert not found, "sort these, or take the order of something else:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("for x in {1, 2}: print(x)", True),
        ("for x in a.keys() & b: print(x)", True),
        ("for x in sorted(a.keys() & b): print(x)", False),
        ("for x in a.keys(): print(x)", False),
        ("{x: 1 for x in a.keys() - b}", True),
        ("{x for x in set(a)}", False),
        ("[x for x in set(a)]", True),
        ("any(x for x in set(a))", False),
        ("', '.join(set(a))", True),
        ("', '.join(f(x) for x in set(a))", True),
        ("', '.join(sorted(set(a)))", False),
        ("list(frozenset(a))", True),
        ("next(iter(a.keys() - b))", True),
        ("f'{set(a)} is bad'", True),
        ("[*{1, 2}]", True),
        ("{*{1, 2}, 3}", False),
        ("s = {x for x in a}\nfor x in s: print(x)", True),
        ("s = {x for x in a}\ndef f():\n    return [x for x in s]", True),
        ("s = set(a)\ndef f():\n    s = [1]\n    return [x for x in s]", False),
        ("def f(s: set[int]):\n    return list(s)", True),
        ("def f(s: list[int]):\n    return list(s)", False),
        ("s = set(a)\nt = s | b\nlist(t)", True),
        ("x = a - b\nlist(x)", False),
    ],
)
def test_what_the_rule_finds(code: str, found: bool) -> None:
    assert bool(faults(code)) == found
