"""An MLP of the `block` layout as one operation, a chunk of tokens at a time.

The hidden activations of a widened block are `alpha` times as many as its parent's. Made for all
tokens at once, they are fresh memory, and bringing that in costs more than the arithmetic; made for
as many tokens as stay in cache, they cost next to nothing. The same holds backwards.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..planning import BlockSpec
from .allocator import settle_allocator
from .block import DownPart, Part, UpPart, is_coupled, joined, multiply, small_parts
from .expression import PER_DOWN, PER_UP, Expression, Tensors

CHUNK_TOKENS = 512
"""Tokens at a time. With many fewer, the matrices' way into the cache costs too much."""

PART_BYTES = 2 << 20
"""Of hidden activations at a time, or those of one child: what a core's own cache holds."""


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


class ChunkedMLP(torch.autograd.Function):
    """`down(f(up(x), ...))`.

    Its arguments are an `Expression` and the tensors of each up projection and of the down
    projection, see `PER_UP`. The result is `[tokens, out_features]`.
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
                down.write_(total, part, expression.hidden(expression.apart(pre)))
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
    for turn, chunk in enumerate(ctx.schedule.chunks):
        added_to = turn > 0
        upstream = gradient[chunk].t().contiguous()
        for part in ctx.schedule.parts:
            if expression.keep:
                sums = [next(kept) for _ in ups]
            else:
                sums = [up.sums(part, chunk) for up in ups]
            pre = sums
            if is_coupled(expression.spec) or not expression.keep:
                pre = [up.finish_(part, own) for up, own in zip(ups, sums, strict=True)]
            values = expression.apart(pre)
            to_written = down.gather(part, upstream)
            shape = torch.broadcast_shapes(*(value.shape for value in values))
            to_hidden = down.back(part, to_written).sum_to_size(shape)
            hidden, to_values = expression.back(values, to_hidden)
            down.add_products(part, to_written, hidden, added_to)
            for number, (up, own) in enumerate(zip(ups, sums, strict=True)):
                up.back(part, chunk, own, expression.together(to_values, number), added_to)
    for up in ups:
        up.end()
    if grads[-1] is not None:
        grads[-1] = gradient.sum(0)
    return (None, *grads)


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
        x, inputs, weight, bias, coupling = tensors
        assert x is not None
        assert inputs is not None
        self.rows, self.bias = x.t().contiguous(), bias
        self.to_x, _, *to_numbers = grads
        self.to_rows = None if self.to_x is None else torch.zeros_like(self.rows)
        inputs = inputs.int()
        self._numbers = cache(lambda part: UpPart(spec, part, inputs, weight, bias, coupling))
        self._grads = cache(lambda part: UpPart(spec, part, inputs, *to_numbers))

    def sums(self, part: Part, chunk: slice) -> Tensor:
        """Partial sums `[tiles, children, sources, parents, tokens]`."""
        return self._numbers(part).sums(self.rows[:, chunk])

    def finish_(self, part: Part, sums: Tensor) -> Tensor:
        """Pre-activations; they take the place of the partial sums if these are not coupled."""
        numbers = self._numbers(part)
        return numbers.add_bias(numbers.couple(sums), reuse=True)  # coupled, they are new

    def back(self, part: Part, chunk: slice, sums: Tensor, to_pre: Tensor, added_to: bool) -> None:
        """Adds to the gradients.

        Args:
            part: Which children.
            chunk: Which tokens.
            sums: Partial sums, if they are coupled.
            to_pre: Gradient of the pre-activations.
            added_to: Whether the weights' gradient holds anything yet.
        """
        numbers, grads = self._numbers(part), self._grads(part)
        if grads.bias is not None:
            grads.bias += to_pre.sum_to_size(grads.bias.shape)
        if isinstance(grads.coupling, Tensor):
            others = sums.sum(1, keepdim=True) - sums
            grads.coupling += (to_pre * others).sum_to_size(grads.coupling.shape)
        to_sums = numbers.couple(to_pre)  # what is symmetric is its own transpose
        to_sums = to_sums.expand(-1, part.children, -1, -1, -1).flatten(2, 3)
        if grads.runs:
            gathered = numbers.gather(self.rows[:, chunk])
            for run in grads.runs:
                _add_products_(run.matrices, run.hidden(to_sums), run.rows(gathered), added_to)
        if self.to_rows is not None:
            parts = [
                multiply(run.matrices.mT, run.hidden(to_sums)).flatten(1, 2) for run in numbers.runs
            ]
            self.to_rows[:, chunk].index_add_(0, numbers.index, joined(parts).flatten(0, 1))

    def end(self) -> None:
        """Hands over the gradient of what it reads."""
        if self.to_x is not None and self.to_rows is not None:
            self.to_x.copy_(self.to_rows.t())


class _Down:
    """A down projection, and where its gradients are summed up."""

    def __init__(self, spec: BlockSpec, tensors: Tensors, grads: Tensors) -> None:
        outputs, weight, self.bias = tensors
        _, to_weight, _ = grads
        self._numbers = cache(lambda part: DownPart(spec, part, outputs, weight))
        self._grads = cache(lambda part: DownPart(spec, part, outputs, to_weight))

    def write_(self, total: Tensor, part: Part, hidden: Tensor) -> None:
        """Adds what hidden activations `[tiles, children, parents, tokens]` make to the outputs."""
        numbers = self._numbers(part)
        numbers.write_(total, numbers.side_by_side(hidden))

    def gather(self, part: Part, upstream: Tensor) -> Tensor:
        """Gradient of what children write `[tiles, outputs, tokens]`.

        Args:
            part: Which children.
            upstream: Gradient of the outputs `[out_features, tokens]`.
        """
        return self._numbers(part).gather(upstream)

    def back(self, part: Part, to_written: Tensor) -> Tensor:
        """Gradient of the hidden activations `[tiles, children, parents, tokens]`."""
        numbers = self._numbers(part)
        parts = [multiply(run.matrices.mT, run.rows(to_written)) for run in numbers.runs]
        to_hidden = joined(parts)
        if numbers.replicated:
            to_hidden = to_hidden.squeeze(1).unflatten(1, (part.children, part.parents))
        return to_hidden

    def add_products(self, part: Part, to_written: Tensor, hidden: Tensor, added_to: bool) -> None:
        """Adds to the gradient of the weights.

        Args:
            part: Which children.
            to_written: Gradient of what they write.
            hidden: Hidden activations `[tiles, children, parents, tokens]`.
            added_to: Whether the gradient holds anything yet.
        """
        grads = self._grads(part)
        if grads.runs:
            met = grads.side_by_side(hidden)
            for run in grads.runs:
                _add_products_(run.matrices, run.rows(to_written), run.hidden(met), added_to)


def _add_products_(matrices: Tensor, left: Tensor, right: Tensor, added_to: bool) -> None:
    """`matrices += left @ right^T`, or `=`; all are `[tiles, children, ...]`."""
    left, right = left.to(matrices.dtype), right.to(matrices.dtype)
    left, right = left.flatten(0, 1), right.flatten(0, 1).mT
    matrices.flatten(0, 1).baddbmm_(left, right, beta=int(added_to))
