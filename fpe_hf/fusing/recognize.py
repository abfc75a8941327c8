"""Reads from a module's program whether it is an MLP: `down(f(up(x)))`, gated or not.

torch.fx runs the program once, with symbols for tensors. What lies between the projections must be
elementwise, and everything that is not understood is a no.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..layers import FPELayer
from ..planning import BlockSpec
from .activations import form_of, is_activation

_PRODUCTS = (operator.mul, torch.mul)
"""The only functions that may lie between. Others take numbers, or are kept in attributes, that
could be changed later."""


def is_of_transformers(module: nn.Module) -> bool:
    """Whether a module's class is one of transformers' models: anybody else's may do anything, in
    any mode, at any time."""
    return type(module).__module__.startswith("transformers.models.")


def is_idle(module: nn.Module) -> bool:
    """Whether a module hands on what it gets: dropout that drops nothing."""
    return type(module) is nn.Dropout and (module.p == 0.0 or not module.training)


Between = Callable[..., Tensor]


@dataclass(frozen=True)
class Value:
    """A value of `Between`, by its number: first come the sources, then each step's result."""

    number: int


@dataclass(frozen=True)
class Step:
    """An elementwise operation.

    Attributes:
        do: A product, or the name of an activation.
        args: What it reads.
    """

    do: Callable[..., Tensor] | str
    args: tuple[Value, ...]


@dataclass(frozen=True)
class Program:
    """What a module does.

    Attributes:
        steps: What lies between the projections; the last makes the hidden activations.
        hidden_drops: Names of dropout modules on the hidden activations.
        output_drops: Names of dropout modules on the outputs.
    """

    steps: tuple[Step, ...]
    hidden_drops: tuple[str, ...] = ()
    output_drops: tuple[str, ...] = ()

    @property
    def submodules(self) -> tuple[str, ...]:
        """Names of the activation modules."""
        return tuple(step.do for step in self.steps if isinstance(step.do, str))

    def between(self, module: nn.Module) -> Between:
        """The function between the projections of `module`.

        It may be told to overwrite its arguments.
        """
        last = {value: at for at, step in enumerate(self.steps) for value in step.args}
        steps = []
        for at, step in enumerate(self.steps):
            do = module.get_submodule(step.do) if isinstance(step.do, str) else step.do
            form = form_of(do)
            new, in_place = (do, do) if form is None else (form.new, form.in_place)
            if do in _PRODUCTS:
                in_place = Tensor.mul_
            if last[step.args[0]] > at:  # it is read again
                in_place = new
            steps.append((new, in_place, step.args))

        def run(*sources: Tensor, overwrite: bool = False) -> Tensor:
            values = list(sources)
            for new, in_place, args in steps:
                own = [values[value.number] for value in args]
                values.append((in_place if overwrite else new)(*own))
            return values[-1]

        return run


class _Unknown(Exception):
    """The program does something that is not understood."""


def recognize(
    module: nn.Module, spec: BlockSpec, ups: tuple[str, ...], down: str
) -> Program | None:
    """What a module does, if that is the MLP of a block and nothing else.

    Args:
        module: It holds all projections of the block.
        spec: The block.
        ups: Names of the up projections in `module`, gate first.
        down: Name of the down projection in `module`.
    """
    if type(module) is not nn.Sequential and not is_of_transformers(module):
        return None
    mode = module.training
    found = []
    try:
        for module.training in (True, False):
            found.append(_Reader(module, spec, ups, down).read(_Tracer().trace(module)))
    except Exception:  # whatever a program does with symbols that it cannot do
        return None
    finally:
        module.training = mode
    return found[0] if found[0] == found[1] else None


class _Tracer(fx.Tracer):
    """Looks into modules that hold projections, and into no others."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FPELayer) or not any(isinstance(own, FPELayer) for own in m.modules())


class _Reader:
    """Follows values through a graph."""

    def __init__(self, module: nn.Module, spec: BlockSpec, ups: tuple[str, ...], down: str) -> None:
        self.module, self.spec, self.ups, self.down = module, spec, ups, down
        self.values: dict[fx.Node, Any] = {}
        self.steps: list[Step] = []
        self.drops: dict[str, list[str]] = {"hidden": [], "output": []}

    def read(self, graph: fx.Graph) -> Program:
        """The program. What a node makes is `"input"`, `"both"` (gate and up in one tensor), a
        tuple of `Value`s, a `Value`, or `"output"`."""
        result: Any = None
        for node in graph.nodes:
            if node.op == "placeholder":
                if node.users:
                    self._expect("input" not in self.values.values())
                    self.values[node] = "input"
            elif node.op == "get_attr" and not node.users:
                continue  # T5 looks at a weight, to see whether it is one
            elif node.op == "output":
                result = (
                    self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                )
            else:
                self.values[node] = self._made(node)
        self._expect(result == "output" and bool(self.steps))
        return Program(tuple(self.steps), tuple(self.drops["hidden"]), tuple(self.drops["output"]))

    def _expect(self, holds: bool) -> None:
        if not holds:
            raise _Unknown

    def _made(self, node: fx.Node) -> Any:
        first = self.values.get(node.args[0]) if node.args else None  # type: ignore[arg-type]
        if node.op == "call_module":
            return self._of_module(str(node.target), node, first)
        self._expect(node.op in ("call_function", "call_method"))
        do: Any = getattr(Tensor, str(node.target)) if node.op == "call_method" else node.target
        if first == "both" or isinstance(first, tuple):
            return self._apart(do, node, first)
        self._expect(node.target in _PRODUCTS and len(node.args) == 2 and not node.kwargs)
        return self._step(do, node)

    def _of_module(self, name: str, node: fx.Node, first: Any) -> Any:
        self._expect(len(node.args) == 1 and not node.kwargs)
        if name in self.ups:
            self._expect(first == "input")
            return "both" if self.spec.fused else Value(self.ups.index(name))
        if name == self.down:
            # Nothing else may have read the hidden activations.
            self._expect(self._is_last(first))
            return "output"
        module = self.module.get_submodule(name)
        if type(module) is nn.Dropout:
            if first == "output":
                self.drops["output"].append(name)
            else:
                self._expect(isinstance(first, Value) and first.number >= self.spec.sources)
                self.drops["hidden"].append(name)
            return first
        self._expect(is_activation(module))
        return self._step(name, node)

    def _is_last(self, value: Any) -> bool:
        last = self.spec.sources + len(self.steps) - 1
        return bool(self.steps) and value == Value(last)

    def _step(self, do: Callable[..., Tensor] | str, node: fx.Node) -> Value:
        self.steps.append(Step(do, tuple(self._argument(own) for own in node.args)))
        return Value(self.spec.sources + len(self.steps) - 1)

    def _argument(self, own: Any) -> Any:
        value = self.values[own] if isinstance(own, fx.Node) else None
        self._expect(isinstance(value, Value))
        return value

    def _apart(self, do: Callable[..., Any], node: fx.Node, first: Any) -> Any:
        """Gate and up, where a program takes them apart: found by doing so with row numbers."""
        if isinstance(first, tuple):
            self._expect(do is operator.getitem)
            return first[node.args[1]]  # type: ignore[index]
        count = 2 * self.spec.hidden
        rows = torch.arange(count, device="cpu", dtype=torch.int64)
        own = [rows[::2], rows[1::2]] if self.spec.fused == "interleaved" else rows.chunk(2)
        found = do(rows.view(1, 1, count), *node.args[1:], **node.kwargs)
        values = []
        for part in found if isinstance(found, (tuple, list)) else (found,):
            at = [number for number in range(2) if torch.equal(part.flatten(), own[number])]
            self._expect(len(at) == 1)
            values.append(Value(at[0]))
        return tuple(values) if isinstance(found, (tuple, list)) else values[0]
