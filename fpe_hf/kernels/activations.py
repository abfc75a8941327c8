"""Which expressions are the usual activations, with or without a gate, that `activations.h` has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .pointwise import Node, Source, Step


class Kind(IntEnum):
    """What `activations.h` knows."""

    RELU = 0
    SIGMOID_LINEAR = 1
    """`x * sigmoid(scale * x)`: SiLU, and with a scale of 1.702 CLIP's fast GELU."""
    GELU = 2
    GELU_TANH = 3


@dataclass(frozen=True)
class Activation:
    """An activation of one source, times another source if there is a gate.

    Attributes:
        kind: Which one.
        scale: Of `SIGMOID_LINEAR`.
        pre: The source that it is applied to.
        gated: The source that it is multiplied with, or `None`.
    """

    kind: Kind
    scale: float
    pre: Source
    gated: Source | None = None


def recognise(node: Node) -> Activation | None:
    """The activation that an expression is, or `None` if it is something else."""
    found = _plain(node)
    if found is not None or not isinstance(node, Step) or node.function not in _PRODUCTS:
        return found
    if len(node.args) != 2 or node.kwargs:
        return None
    for one, other in (node.args, node.args[::-1]):
        activated = _plain(one)
        if activated is not None and isinstance(other, Source) and other is not activated.pre:
            return Activation(activated.kind, activated.scale, activated.pre, other)
    return None


_PRODUCTS = (torch.mul, Tensor.mul, Tensor.__mul__, torch.multiply, Tensor.multiply)
_SIGMOIDS = (torch.sigmoid, Tensor.sigmoid, functional.sigmoid)
_RELUS = (functional.relu, torch.relu, Tensor.relu)


def _plain(node: Any) -> Activation | None:
    """An activation of a source, without a gate."""
    if not isinstance(node, Step) or not node.args:
        return None
    pre, options = node.args[0], dict(node.kwargs)
    options.pop("inplace", None)  # what writes to its operand is never recorded
    if isinstance(pre, Source) and len(node.args) == 1:
        if node.function is functional.gelu and options.keys() <= {"approximate"}:
            approximate = options.get("approximate", "none")
            return Activation(Kind.GELU if approximate == "none" else Kind.GELU_TANH, 1.0, pre)
        if node.function is functional.silu and not options:
            return Activation(Kind.SIGMOID_LINEAR, 1.0, pre)
        if node.function in _RELUS and not options:
            return Activation(Kind.RELU, 1.0, pre)
    return _sigmoid_linear(node)


def _sigmoid_linear(node: Step) -> Activation | None:
    """`x * sigmoid(scale * x)`, spelled out."""
    if node.function not in _PRODUCTS or len(node.args) != 2:
        return None
    for pre, share in (node.args, node.args[::-1]):
        if isinstance(pre, Source) and isinstance(share, Step) and share.function in _SIGMOIDS:
            scale = _factor(share.args[0], pre)
            if scale is not None:
                return Activation(Kind.SIGMOID_LINEAR, scale, pre)
    return None


def _factor(node: Any, source: Source) -> float | None:
    """The number that a source is multiplied with in `node`."""
    if node is source:
        return 1.0
    if isinstance(node, Step) and node.function in _PRODUCTS and len(node.args) == 2:
        for number, other in (node.args, node.args[::-1]):
            if other is source and isinstance(number, (int, float)) and math.isfinite(number):
                return float(number)
    return None
