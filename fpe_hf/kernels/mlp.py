"""An MLP of the `block` layout as one operation in C, on the CPU in float32: `mlp.c`."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..config import MAX_ALPHA
from . import native
from .allocator import borrow, release, settle_allocator
from .described import CUp, Description
from .expression import PER_DOWN, PER_UP, Expression, Tensors

CHUNK_TOKENS = 256
"""Tokens at a time."""

LEAST_TOKENS = 64
"""As many columns of hidden activations have memory, at least."""

PART_NUMBERS = 1 << 18
"""Hidden activations at a time, about."""

_ROWS = 6
"""Rows of a product at a time: `HEIGHT` in `products.h`."""


class _Sizes(ctypes.Structure):
    _fields_ = [
        ("sums", ctypes.c_int64),
        ("forward", ctypes.c_int64 * 2),
        ("back", ctypes.c_int64 * 2),
    ]


def fits(*tensors: Tensor) -> bool:
    """Whether the kernel takes such tensors: float32, on the CPU, and there is a C compiler."""
    return (
        all(t.dtype == torch.float32 and t.is_cpu for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and native.library("mlp") is not None
    )


def usable(expression: Expression, tensors: Tensors) -> bool:
    """Whether the kernel can do it: a usual activation, and tensors that `fits` accepts.

    Args:
        expression: What to compute.
        tensors: The arguments of `FusedMLP`.
    """
    floats = [t for t in tensors if t is not None and t.dtype.is_floating_point]
    return (
        expression.activation is not None
        and len(expression.order) == expression.spec.sources
        and expression.spec.alpha <= MAX_ALPHA
        and fits(*floats)
        and all(tensor.is_contiguous() for tensor in floats)
    )


class FusedMLP(torch.autograd.Function):
    """`down(activation(up(x)))`, with arguments and result as `ChunkedMLP`; see `usable`."""

    @staticmethod
    def forward(ctx: Any, expression: Expression, *tensors: Tensor | None) -> Tensor:
        settle_allocator()
        call = _Call(expression, tensors, [None] * len(tensors))
        result = call.x.new_empty(call.x.shape[0], expression.spec.out_features)
        kept = None
        if expression.keep:
            kept = borrow(call.sizes.sums)
        else:
            release()  # nobody trains, for now
        scratch = call.x.new_empty(call.sizes.forward[expression.keep])
        call.run("fpe_mlp", result, kept, scratch)
        ctx.expression = expression
        ctx.save_for_backward(*tensors, kept)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        expression: Expression = ctx.expression
        *tensors, kept = ctx.saved_tensors
        gradient = gradient.contiguous()
        weights = {PER_UP * up + 2 for up in range(expression.ups)} | {len(tensors) - 2}
        grads: list[Tensor | None] = []
        wanted = ctx.needs_input_grad[1:]
        for place, (tensor, needed) in enumerate(zip(tensors, wanted, strict=True)):
            made = torch.empty_like if place in weights else torch.zeros_like
            grads.append(made(tensor) if needed else None)
        call = _Call(expression, tensors, grads)
        scratch = gradient.new_empty(call.sizes.back[kept is not None])
        call.run("fpe_mlp_back", gradient, kept, scratch)
        if grads[-1] is not None:
            grads[-1] = gradient.sum(0)
        return (None, *grads)


class _Call(Description):
    """The arguments of a call.

    Attributes:
        x: What the first up projection reads `[tokens, in_features]`.
        sizes: Of the memory that the call is to be given.
    """

    def __init__(self, expression: Expression, tensors: Tensors, grads: Tensors) -> None:
        super().__init__()
        spec, activation = expression.spec, expression.activation
        assert activation is not None
        assert tensors[0] is not None
        self.x = tensors[0]
        tokens = self.x.shape[0]
        at_a_time = max(LEAST_TOKENS, min(CHUNK_TOKENS, tokens))
        tallest = max(stop - start for start, stop in spec.tiles)
        numbers = {
            source: up * spec.sources_per_up + own
            for source, (up, own) in zip(expression.order, expression.places, strict=True)
        }
        self._block = self.block(
            spec,
            tokens=tokens,
            kind=activation.kind,
            scale=activation.scale,
            activated=numbers[activation.pre],
            gate=-1 if activation.gated is None else numbers[activation.gated],
            chunk=CHUNK_TOKENS,
            part=_part(tallest, PART_NUMBERS // (spec.alpha * at_a_time)),
            threads=torch.get_num_threads(),
        )
        slots = [slice(PER_UP * up, PER_UP * (up + 1)) for up in range(expression.ups)]
        self._ups = (CUp * expression.ups)(*(self.up(tensors[s], grads[s]) for s in slots))
        self._down = self.down(spec, tensors[-PER_DOWN:], grads[-2])
        self.sizes = _Sizes()
        library = native.library("mlp")
        assert library is not None
        self._library = library
        library.fpe_mlp_sizes(ctypes.byref(self._block), ctypes.byref(self.sizes))

    def run(self, function: str, result: Tensor, kept: Tensor | None, scratch: Tensor) -> None:
        """Calls one of the functions of `mlp.c`."""
        getattr(self._library, function)(
            ctypes.byref(self._block),
            self._ups,
            ctypes.byref(self._down),
            result.data_ptr(),
            None if kept is None else kept.data_ptr(),
            scratch.data_ptr(),
        )


def _part(parents: int, about: int) -> int:
    """How many of them to take at a time: equal parts, of whole products."""
    parts = max(1, round(parents / max(_ROWS, about)))
    return math.ceil(parents / parts / _ROWS) * _ROWS
