"""Elementwise expressions over what the up projections of a block make, recorded and replayed.

The function between up and down is elementwise in almost every model: an activation, or an
activation times another projection. Recorded, it can be replayed on any part of the hidden
activations, in whatever order they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_UNARY = (
    "abs acos asin atan cos erf erfc exp exp2 expm1 log log1p neg negative reciprocal relu rsqrt "
    "sigmoid sign sin sqrt square tan tanh"
).split()
_BINARY = "add clamp clamp_max clamp_min div maximum minimum mul multiply pow sub".split()
_OPERATORS = "add mul pow sub truediv".split()
_ACTIVATIONS = (
    "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 selu "
    "sigmoid silu softplus softsign tanh tanhshrink threshold"
).split()


def _elementwise() -> frozenset[Any]:
    names = [*_UNARY, *_BINARY]
    found = [getattr(home, name, None) for home in (torch, Tensor) for name in names]
    found += [getattr(Tensor, f"__{side}{name}__") for name in _OPERATORS for side in ("", "r")]
    found += [Tensor.__neg__, Tensor.__abs__, Tensor.__rsub__, Tensor.__rpow__]
    found += [getattr(functional, name) for name in _ACTIVATIONS]
    return frozenset(function for function in found if function is not None)


ELEMENTWISE = _elementwise()
"""Functions whose results are of the shape of their operands, each element from its own."""


@dataclass(frozen=True, eq=False)
class Source:
    """The pre-activations of one up-type matrix.

    Attributes:
        up: Which of the expression's up projections.
        source: Which of its matrices: 0, or 1 in a fused gate and up.
    """

    up: Any
    source: int


@dataclass(frozen=True, eq=False)
class Step:
    """An elementwise function of other nodes.

    Attributes:
        function: One of `ELEMENTWISE`.
        args: Its arguments; nodes stand for tensors.
        kwargs: Its keyword arguments, none of which is a node.
    """

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


Node = Source | Step


def sources(node: Node) -> list[Source]:
    """The sources of an expression, each once, in the order in which they are first used."""
    found: dict[Source, None] = {}
    todo: list[Node] = [node]
    seen: set[Node] = set()
    while todo:
        own = todo.pop()
        if own in seen:
            continue
        seen.add(own)
        if isinstance(own, Source):
            found[own] = None
        else:
            todo += reversed([arg for arg in own.args if isinstance(arg, (Source, Step))])
    return list(found)


def evaluate(node: Node, values: Sequence[Tensor], order: Sequence[Source]) -> Tensor:
    """The value of an expression.

    Args:
        node: The expression.
        values: Values of its sources, of one shape.
        order: The sources these belong to.
    """
    return _value(node, dict(zip(order, values, strict=True)))


def _value(node: Node, known: dict[Node, Tensor]) -> Tensor:
    # No closure: one that calls itself would keep the tensors until the garbage collector runs.
    if node not in known:
        assert isinstance(node, Step)
        args = [_value(arg, known) if isinstance(arg, (Source, Step)) else arg for arg in node.args]
        known[node] = node.function(*args, **node.kwargs)
    return known[node]


def is_elementwise(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call with tensors of one shape is elementwise, and leaves them unchanged."""
    numbers = (int, float, type(None), str)  # a rounding mode, an approximation
    return (
        function in ELEMENTWISE
        and not kwargs.get("inplace", False)
        and all(isinstance(arg, (*numbers, Source, Step)) for arg in args)
        and all(isinstance(arg, numbers) for arg in kwargs.values())
    )
