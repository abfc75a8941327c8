"""The usual activations, with or without a gate, in one pass over memory, on the CPU in float32.

Plain PyTorch makes several passes of most of them, and backwards one more to make the hidden
activations anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import native
from .pointwise import Node, Source, Step


class Kind(IntEnum):
    """What `activations.c` knows."""

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


def usable(activation: Activation | None, values: Sequence[Tensor]) -> bool:
    """Whether the kernel can take it: whole float32 tensors on the CPU, and a C compiler.

    Args:
        activation: What to compute.
        values: Of its sources.
    """
    return (
        activation is not None
        and all(v.dtype == torch.float32 and v.is_cpu and v.is_contiguous() for v in values)
        and len({v.shape for v in values}) == 1
        and native.library("activations") is not None
    )


def activate(activation: Activation, values: Mapping[Source, Tensor]) -> Tensor:
    """The hidden activations.

    Args:
        activation: What to compute.
        values: The pre-activations of its sources; see `usable`.
    """
    pre = values[activation.pre]
    up = None if activation.gated is None else values[activation.gated]
    out = torch.empty_like(pre)
    kernel = native.library("activations")
    assert kernel is not None
    kernel.fpe_activate(
        activation.kind,
        activation.scale,
        pre.data_ptr(),
        None if up is None else up.data_ptr(),
        out.data_ptr(),
        pre.numel(),
        torch.get_num_threads(),
    )
    return out


def activate_back(
    activation: Activation, values: Mapping[Source, Tensor], to_hidden: Tensor
) -> tuple[Tensor, dict[Source, Tensor]]:
    """The hidden activations once more, and the gradients of the pre-activations.

    Args:
        activation: What was computed.
        values: The pre-activations of its sources; see `usable`.
        to_hidden: Gradient of the hidden activations.
    """
    pre = values[activation.pre]
    up = None if activation.gated is None else values[activation.gated]
    to_hidden = to_hidden.contiguous()
    out, to_pre = torch.empty_like(pre), torch.empty_like(pre)
    to_up = None if up is None else torch.empty_like(up)
    kernel = native.library("activations")
    assert kernel is not None
    kernel.fpe_activate_back(
        activation.kind,
        activation.scale,
        pre.data_ptr(),
        None if up is None else up.data_ptr(),
        to_hidden.data_ptr(),
        out.data_ptr(),
        to_pre.data_ptr(),
        None if to_up is None else to_up.data_ptr(),
        pre.numel(),
        torch.get_num_threads(),
    )
    grads = {activation.pre: to_pre}
    if activation.gated is not None and to_up is not None:
        grads[activation.gated] = to_up
    return out, grads
