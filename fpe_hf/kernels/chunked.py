"""An MLP of the `block` layout as one operation, a chunk of tokens at a time.

The hidden activations of a widened block are `alpha` times as many as its parent's. Made for all
tokens at once, they are fresh memory, and bringing that in costs more than the arithmetic; made for
as many tokens as stay in cache, they cost next to nothing. The same holds backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..planning import BlockSpec
from .block import (
    Part,
    biases,
    couple,
    couplings,
    down_matrices,
    gather,
    is_coupled,
    joined,
    multiply,
    output_index,
    partial_sums,
    per_parent,
    scatter_,
    side_by_side,
    small_parts,
    up_matrices,
    written,
)
from .pointwise import Node, Source, evaluate

CHUNK_TOKENS = 256
"""Tokens at a time. With many fewer, the matrices' way into the cache costs too much."""

PART_BYTES = 2 << 20
"""Of hidden activations at a time, or those of one child: what a core's own cache holds."""


@dataclass(frozen=True)
class Expression:
    """What lies between the projections of a block.

    Attributes:
        spec: The block.
        node: The hidden activations, as a function of the sources.
        order: The sources.
        places: Up projection and number of each source.
        ups: Number of up projections.
        keep: Whether to keep the partial sums for the backward pass, which else makes them anew.
    """

    spec: BlockSpec
    node: Node
    order: tuple[Source, ...]
    places: tuple[tuple[int, int], ...]
    ups: int
    keep: bool

    def hidden(self, pre: Sequence[Tensor]) -> Tensor:
        """Hidden activations `[tiles, children, parents, tokens]` from the pre-activations of each
        up projection `[tiles, children, sources, parents, tokens]`."""
        return evaluate(self.node, [pre[up][:, :, s] for up, s in self.places], self.order)


class Schedule:
    """In which order the hidden activations are made.

    Attributes:
        chunks: The tokens, some at a time.
        parts: The children, some at a time.
    """

    def __init__(self, spec: BlockSpec, tokens: int, itemsize: int) -> None:
        size = -(-tokens // -(-tokens // CHUNK_TOKENS))
        self.chunks = [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
        self.parts = list(small_parts(spec, PART_BYTES // (spec.sources * size * itemsize)))


@cache
def settle_allocator() -> None:
    """Has the C library keep the memory of freed tensors, rather than fetch it anew each time.

    glibc does so once a piece as large has been freed, up to 32 MiB. Most programs come to that by
    themselves, sooner or later.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


class ChunkedMLP(torch.autograd.Function):
    """`down(f(up(x), ...))`.

    Its arguments are an `Expression`, the numbers of each up projection (what it reads,
    `[in_features, tokens]`, its index, weight, bias and coupling), and those of the down projection
    (its index, weight and bias). The result is `[tokens, out_features]`.
    """

    @staticmethod
    def forward(ctx: Any, expression: Expression, *tensors: Tensor | None) -> Tensor:
        settle_allocator()
        spec = expression.spec
        ups, down = _projections(expression, tensors, [None] * len(tensors))
        tokens = ups[0].rows.shape[1]
        result = ups[0].rows.new_empty(tokens, spec.out_features)
        schedule = Schedule(spec, tokens, result.element_size())
        kept: list[Tensor] = []
        for chunk in schedule.chunks:
            total = result.new_zeros(spec.out_features, chunk.stop - chunk.start)
            for part in schedule.parts:
                sums = [up.sums(part, chunk) for up in ups]
                pre = [up.finish_(part, own) for up, own in zip(ups, sums, strict=True)]
                if expression.keep:
                    kept += sums
                down.write_(total, part, expression.hidden(pre))
            result[chunk] = total.t()
        if down.bias is not None:
            result += down.bias
        ctx.expression = expression
        ctx.schedule = schedule
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(*tensors, *kept)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        enabled, dtype = ctx.autocast
        with torch.autocast("cpu", enabled=enabled, dtype=dtype):
            return _back(ctx, gradient)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    expression: Expression = ctx.expression
    count = PER_UP * expression.ups + PER_DOWN
    tensors, kept = ctx.saved_tensors[:count], iter(ctx.saved_tensors[count:])
    weights = {PER_UP * up + 2 for up in range(expression.ups)} | {count - 2}
    grads: list[Tensor | None] = []
    for place, (tensor, wanted) in enumerate(zip(tensors, ctx.needs_input_grad[1:], strict=True)):
        # The first chunk sets the weights' gradients, the others add to them.
        made = torch.empty_like if place in weights else torch.zeros_like
        grads.append(made(tensor) if wanted else None)
    ups, down = _projections(expression, tensors, grads)
    for number, chunk in enumerate(ctx.schedule.chunks):
        added_to = number > 0
        upstream = gradient[chunk].t().contiguous()
        for part in ctx.schedule.parts:
            if expression.keep:
                sums = [next(kept) for _ in ups]
            else:
                sums = [up.sums(part, chunk) for up in ups]
            pre = sums
            if is_coupled(expression.spec) or not expression.keep:
                pre = [up.finish_(part, own) for up, own in zip(ups, sums, strict=True)]
            # What is cheap, and different from model to model, is left to autograd.
            with torch.enable_grad():
                leaves = [own.detach().requires_grad_() for own in pre]
                hidden = expression.hidden(leaves)
            to_hidden = down.back(part, upstream, hidden.detach(), added_to)
            to_pre = torch.autograd.grad(hidden, leaves, to_hidden.to(hidden.dtype))
            for up, own, to_own in zip(ups, sums, to_pre, strict=True):
                up.back(part, chunk, own, to_own, added_to)
    if grads[-1] is not None:
        grads[-1] = gradient.sum(0)
    return (None, *grads)


PER_UP, PER_DOWN = 5, 3
"""Tensors of a projection among the arguments of `ChunkedMLP`."""

Tensors = Sequence[Tensor | None]


def _projections(
    expression: Expression, tensors: Tensors, grads: Tensors
) -> tuple[list[_Up], _Down]:
    spec = expression.spec
    slots = [slice(PER_UP * index, PER_UP * (index + 1)) for index in range(expression.ups)]
    rest = slice(PER_UP * expression.ups, None)
    return [_Up(spec, tensors[s], grads[s]) for s in slots], _Down(spec, tensors[rest], grads[rest])


class _Up:
    """An up projection, and where its gradients are summed up."""

    def __init__(self, spec: BlockSpec, tensors: Tensors, grads: Tensors) -> None:
        rows, inputs, weight, self.bias, self.coupling = tensors
        assert rows is not None
        assert inputs is not None
        assert weight is not None
        self.spec, self.rows, self.inputs, self.weight = spec, rows, inputs, weight
        self.to_rows, _, self.to_weight, self.to_bias, self.to_coupling = grads

    def sums(self, part: Part, chunk: slice) -> Tensor:
        """Partial sums `[tiles, children, sources, parents, tokens]`."""
        return partial_sums(self.spec, part, self.weight, self.inputs, self.rows[:, chunk])

    def finish_(self, part: Part, sums: Tensor) -> Tensor:
        """Pre-activations; they take the place of the partial sums if these are not coupled."""
        pre = couple(sums, couplings(self.spec, part, self.coupling, sums.dtype))
        if self.bias is None:
            return pre
        bias = biases(self.spec, part, self.bias, sums.dtype)
        if bias.shape[1] > pre.shape[1]:  # equal but for their biases
            return pre + bias
        return pre.add_(bias)  # coupled, they are new already

    def back(self, part: Part, chunk: slice, sums: Tensor, to_pre: Tensor, added_to: bool) -> None:
        """Adds to the gradients.

        Args:
            part: Which children.
            chunk: Which tokens.
            sums: Partial sums, if they are coupled.
            to_pre: Gradient of the pre-activations.
            added_to: Whether the weights' gradient holds anything yet.
        """
        spec = self.spec
        if self.to_bias is not None:
            own = biases(spec, part, self.to_bias, self.to_bias.dtype)
            own += to_pre.sum_to_size(own.shape)
        mu = couplings(spec, part, self.coupling, to_pre.dtype)
        if self.to_coupling is not None:
            others = sums.sum(1, keepdim=True) - sums
            own = per_parent(spec, part, self.to_coupling)
            own += (to_pre * others).sum_to_size(own.shape)
        to_sums = couple(to_pre, mu)  # what is symmetric is its own transpose
        to_sums = to_sums.expand(-1, part.children, -1, -1, -1).flatten(2, 3)
        index = part.index(self.inputs, spec.child_inputs)
        if self.to_weight is not None:
            gathered = gather(self.rows[:, chunk], index)
            for run in up_matrices(spec, part, self.to_weight):
                _add_products_(run.matrices, run.hidden(to_sums), run.rows(gathered), added_to)
        if self.to_rows is not None:
            parts = [
                multiply(run.matrices.mT, run.hidden(to_sums)).flatten(1, 2)
                for run in up_matrices(spec, part, self.weight)
            ]
            rows = joined(parts).flatten(0, 1)
            self.to_rows[:, chunk].index_add_(0, index.flatten().int(), rows)


class _Down:
    """A down projection, and where its gradients are summed up."""

    def __init__(self, spec: BlockSpec, tensors: Tensors, grads: Tensors) -> None:
        self.outputs, weight, self.bias = tensors
        assert weight is not None
        self.spec, self.weight = spec, weight
        _, self.to_weight, _ = grads

    def write_(self, total: Tensor, part: Part, hidden: Tensor) -> None:
        """Adds what hidden activations `[tiles, children, parents, tokens]` make to the outputs."""
        met = side_by_side(self.spec, part, hidden)
        rows = written(self.spec, part, self.weight, met)
        scatter_(total, self.spec, part, self.outputs, rows)

    def back(self, part: Part, upstream: Tensor, hidden: Tensor, added_to: bool) -> Tensor:
        """The gradient of hidden activations; that of the weights is added up.

        Args:
            part: Which children.
            upstream: Gradient of the outputs `[out_features, tokens]`.
            hidden: Hidden activations `[tiles, children, parents, tokens]`.
            added_to: Whether the weights' gradient holds anything yet.
        """
        spec = self.spec
        to_rows = upstream.unsqueeze(0).expand(part.count, -1, -1)
        if self.outputs is not None:
            to_rows = gather(upstream, output_index(spec, part, self.outputs))
        if self.to_weight is not None:
            met = side_by_side(spec, part, hidden)
            for run in down_matrices(spec, part, self.to_weight):
                _add_products_(run.matrices, run.rows(to_rows), run.hidden(met), added_to)
        parts = [
            multiply(run.matrices.mT, run.rows(to_rows))
            for run in down_matrices(spec, part, self.weight)
        ]
        to_hidden = joined(parts)
        if spec.fan_out == "replicate":
            to_hidden = to_hidden.squeeze(1).unflatten(1, (part.children, part.parents))
        return to_hidden.sum_to_size(hidden.shape)


def _add_products_(matrices: Tensor, left: Tensor, right: Tensor, added_to: bool) -> None:
    """`matrices += left @ right^T`, or `=`; all are `[tiles, children, ...]`."""
    left, right = left.to(matrices.dtype), right.to(matrices.dtype)
    left, right = left.flatten(0, 1), right.flatten(0, 1).mT
    matrices.flatten(0, 1).baddbmm_(left, right, beta=int(added_to))
