"""A whole MLP of the `block` layout as one operation on the CPU, a piece at a time.

The hidden activations of a widened block are `alpha` times its parent's. Made for all tokens and
neurons at once, they are fresh memory, and bringing that in costs more than the arithmetic; made
for one child and some of its parents, they stay in the processor's cache. The products are
PyTorch's, and what lies between them is differentiated by autograd, piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..planning import BlockSpec
from . import block
from .block import couple, inverse, pick
from .ordinary import is_ordinary

MOST_TOKENS = 1024
"""Tokens at a time."""

PIECE = 3 << 19
"""Hidden activations at a time, about."""

UP_OPERANDS, DOWN_OPERANDS = 4, 3
"""Operands of an up projection: index, weights, bias, coupling; of a down projection: the first
three."""

Operands = Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class MLP:
    """What one operation computes.

    Attributes:
        spec: The block.
        between: Makes hidden activations of the sources, gate first. It must be elementwise. With
            `overwrite=True` it may write to the sources.
        recompute: Whether the backward pass computes partial sums again rather than keep them.
    """

    spec: BlockSpec
    between: Callable[..., Tensor]
    recompute: bool = False


def fused(mlp: MLP, x: Tensor, *operands: Tensor | None) -> Tensor:
    """`down(between(up(x), ...))`, a piece at a time.

    Args:
        mlp: What to compute.
        x: `[..., in_features]`.
        *operands: Those of each up projection, then those of the down projection.

    Returns:
        `[..., out_features]`.
    """
    _settle_allocator()
    rows = x.reshape(-1, mlp.spec.in_features)
    # Within an autograd function nothing tells whether its result will have gradients.
    trained = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *operands)
    )
    keep = trained and not mlp.recompute
    result: Tensor = _Fused.apply(mlp, keep, rows, *operands)  # type: ignore[no-untyped-call]
    return result.view(*x.shape[:-1], mlp.spec.out_features)


@cache
def _settle_allocator() -> None:
    """Has the C library keep the memory of freed tensors rather than fetch it anew each time.

    glibc does so once something as large has been freed, up to 32 MiB: most programs come to that
    sooner or later, and pieces are too small to bring it about.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


def plain(mlp: MLP, x: Tensor, *operands: Tensor | None) -> Tensor:
    """The same in plain torch operations, which have derivatives of any order."""
    sources: list[Tensor] = []
    for inputs, weight, bias, coupling in _by_up(operands):
        assert inputs is not None
        assert weight is not None
        made = block.up(mlp.spec, x, inputs, weight, bias, coupling)
        if mlp.spec.fused == "interleaved":
            sources += [made[..., ::2], made[..., 1::2]]
        else:
            sources += made.chunk(mlp.spec.sources_per_up, -1)
    outputs, weight, bias = operands[-DOWN_OPERANDS:]
    assert weight is not None
    return block.down(mlp.spec, mlp.between(*sources), outputs, weight, bias)


def _by_up(operands: Operands) -> list[Operands]:
    ups = range(0, len(operands) - DOWN_OPERANDS, UP_OPERANDS)
    return [operands[first : first + UP_OPERANDS] for first in ups]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mlp: MLP, keep: bool, x: Tensor, *operands: Tensor | None) -> Tensor:
        kept: list[Tensor] = []
        bias = operands[-1]
        result = torch.zeros(
            len(x), mlp.spec.out_features, dtype=_accumulator(x.dtype), device=x.device
        )
        if bias is not None:
            result += bias
        pieces = _pieces(mlp.spec, len(x), operands)
        for rows in _chunks(len(x)):
            read: list[Tensor] = []
            for piece in pieces:
                read = piece.read(x[rows]) if piece.first else read
                target = piece.target(result[rows])
                for children in piece.groups:
                    sums = piece.sums(read, children)
                    if keep:
                        kept += [own for child in sums for own in child]
                    hidden = [mlp.between(*pre, overwrite=not keep) for pre in piece.pre(sums)]
                    piece.write_(target, hidden, children)
                piece.add_outputs_(result[rows], target)
        ctx.mlp, ctx.keep = mlp, keep
        ctx.save_for_backward(x, *operands, *kept)
        return result.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mlp: MLP = ctx.mlp
        count = 1 + UP_OPERANDS * len(mlp.spec.ups) + DOWN_OPERANDS
        saved: tuple[Tensor, ...] = ctx.saved_tensors  # to be asked for once, says checkpointing
        tensors, wanted = saved[:count], ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or not is_ordinary(gradient):
            return (None, None, *_plain_back(mlp, tensors, wanted, gradient))
        kept = iter(saved[count:]) if ctx.keep else None
        return (None, None, *_back(mlp, tensors, wanted, gradient, kept))


def _plain_back(
    mlp: MLP, tensors: Operands, wanted: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    """Gradients in plain operations: differentiable, and for many at once (`vmap`)."""
    places = [place for place, needed in enumerate(wanted) if needed]

    def of(*trained: Tensor) -> Tensor:
        given = dict(zip(places, trained, strict=True))
        own = [given.get(place, tensor) for place, tensor in enumerate(tensors)]
        assert own[0] is not None
        return plain(mlp, own[0], *own[1:])

    pull = torch.func.vjp(of, *(tensors[place] for place in places))[1]
    found = dict(zip(places, pull(gradient), strict=True))
    return [found.get(place) for place in range(len(tensors))]


def _back(
    mlp: MLP,
    tensors: Operands,
    wanted: Sequence[bool],
    gradient: Tensor,
    kept: Iterator[Tensor] | None,
) -> list[Tensor | None]:
    x, *operands = tensors
    assert x is not None
    grads = [
        torch.zeros_like(tensor, dtype=_accumulator(tensor.dtype))
        if needed and tensor is not None
        else None
        for tensor, needed in zip(tensors, wanted, strict=True)
    ]
    to_x, *to_operands = grads
    if to_operands[-1] is not None:
        to_operands[-1] += gradient.sum(0)
    pieces = _pieces(mlp.spec, len(x), operands)
    to_pieces = _pieces(mlp.spec, len(x), to_operands)
    for rows in _chunks(len(x)):
        read, to_read, to_target = list[Tensor](), list[Tensor](), gradient[rows]
        for piece, to in zip(pieces, to_pieces, strict=True):
            if piece.first:
                read, to_target = piece.read(x[rows]), piece.gather_outputs(gradient[rows])
                to_read = (
                    [] if to_x is None else [torch.zeros_like(r, dtype=to_x.dtype) for r in read]
                )
            for children in piece.groups:
                sums = piece.sums(read, children) if kept is None else piece.like(kept, children)
                with torch.enable_grad():
                    pre = [
                        [own.detach().requires_grad_() for own in child]
                        for child in piece.pre(sums)
                    ]
                    hidden = [mlp.between(*child) for child in pre]
                leaves = [own for child in pre for own in child]
                to_hidden = piece.back_down(to_target, children)
                to_pre = piece.like(iter(torch.autograd.grad(hidden, leaves, to_hidden)), children)
                to_sums = piece.back_pre(to, sums, to_pre, children)
                to.add_down_(to_target, [own.detach() for own in hidden], children)
                to.add_up_(read, to_sums, children)
                if to_x is not None:
                    piece.back_up_(to_read, to_sums, children)
            if to_x is not None and piece.last:
                piece.add_inputs_(to_x[rows], to_read)
    return [own if own is None else own.to(x.dtype) for own in grads]


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums over pieces are kept in: of 16 bits, each would be rounded."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _chunks(tokens: int) -> list[slice]:
    """The tokens, some at a time."""
    size = max(1, -(-tokens // max(1, -(-tokens // MOST_TOKENS))))
    return [slice(first, min(first + size, tokens)) for first in range(0, tokens, size)]


def _pieces(spec: BlockSpec, tokens: int, operands: Operands) -> list[_Piece]:
    """A block in pieces: some parents of a tile each."""
    ups = [_Up(spec, own) for own in _by_up(operands)]
    outputs, weight, _ = operands[-DOWN_OPERANDS:]
    down = None if weight is None else block.down_blocks(spec, weight)
    places = None if outputs is None else inverse(outputs, spec.out_features)
    together = spec.sources * (spec.alpha if block.is_coupled(spec) else 1)
    most = max(1, PIECE // (together * max(1, min(tokens, MOST_TOKENS))))
    found = []
    for tile, (start, stop) in enumerate(spec.tiles):
        step = -(-(stop - start) // -(-(stop - start) // most))
        for first in range(start, stop, step):
            parents = range(first, min(first + step, stop))
            piece = _Piece(spec, tile, parents, ups)
            piece.down = None if down is None else [own[:, piece.own] for own in down[tile]]
            if outputs is not None and places is not None:
                piece.outputs, piece.places = outputs[tile].int(), places[tile]
            found.append(piece)
    return found


class _Up:
    """The operands of an up projection (or their gradients), cut up."""

    def __init__(self, spec: BlockSpec, operands: Operands) -> None:
        self.inputs, weight, bias, coupling = operands
        self.blocks = None if weight is None else block.up_blocks(spec, weight)
        self.bias = None if bias is None else bias.view(spec.sources_per_up, -1)
        self.coupling = None if coupling is None else coupling.view(spec.sources_per_up, -1)


class _Piece:
    """Some parents of a tile: their part of the operands, or of the operands' gradients.

    Attributes:
        first: Whether it is the first piece of its tile.
        last: Whether it is the last.
        groups: The children that are computed together.
        inputs: Per up projection, what the tile's children read, or `None`.
        outputs: What they write, or `None`: all, in order.
        places: The inverse of `outputs`.
        up: Matrices `[parents, inputs]` per child and source, or `None`.
        bias: Biases `[parents]` per child and source, or `None`.
        coupling: Trainable couplings `[parents]` per source, or `None`.
        down: Matrices `[outputs, parents]` per child, or `None`.
    """

    outputs: Tensor | None = None
    places: Tensor | None = None
    down: list[Tensor] | None = None

    def __init__(self, spec: BlockSpec, tile: int, parents: range, ups: Sequence[_Up]) -> None:
        start, stop = spec.tiles[tile]
        self.spec = spec
        self.own = slice(parents.start - start, parents.stop - start)
        self.first, self.last = parents.start == start, parents.stop == stop
        self.coupled = block.is_coupled(spec)
        self.equal = self.coupled and spec.coupling == 1.0 and not spec.learn_coupling
        self.equal &= spec.bias == "shared" or not any(spec.up_biases)
        every = range(spec.alpha)
        self.groups = [every] if self.coupled else [range(c, c + 1) for c in every]
        self.inputs = [None if up.inputs is None else up.inputs[tile].int() for up in ups]
        sources = [(up, source) for up in ups for source in range(spec.sources_per_up)]
        rows = slice(parents.start, parents.stop)
        self.coupling = [
            None if up.coupling is None else up.coupling[source, rows] for up, source in sources
        ]
        self.up, self.bias = [], []
        for child in every:
            if spec.bias == "child":
                first = spec.alpha * start + child * (stop - start) + self.own.start
                rows = slice(first, first + len(parents))
            self.up.append(
                [
                    None if up.blocks is None else up.blocks[tile][child][source, self.own]
                    for up, source in sources
                ]
            )
            self.bias.append(
                [None if up.bias is None else up.bias[source, rows] for up, source in sources]
            )

    def read(self, x: Tensor) -> list[Tensor]:
        """What the children read, per up projection."""
        return [x.index_select(1, inputs) for inputs in self.inputs if inputs is not None]

    def _by_child(self, read: Sequence[Tensor], child: int) -> list[Tensor]:
        """What one child reads, per source."""
        columns = [own.split(self.spec.child_inputs, 1)[child] for own in read]
        return [own for own in columns for _ in range(self.spec.sources_per_up)]

    def sums(self, read: Sequence[Tensor], children: range) -> list[list[Tensor]]:
        """Partial sums `[tokens, parents]` per child and source, biases included unless children
        are coupled. Equal children have one sum, that of their parent."""
        found: list[list[Tensor]] = []
        for child in children:
            operands = zip(
                self._by_child(read, child), self.up[child], self.bias[child], strict=True
            )
            for source, (x, matrix, bias) in enumerate(operands):
                assert matrix is not None
                if self.equal and child > children.start:
                    _add_product_(found[0][source], x, matrix.t())
                    continue
                if source == 0:
                    found.append([])
                if bias is not None and (self.equal or not self.coupled):
                    found[-1].append(torch.addmm(bias, x, matrix.t()))
                else:
                    found[-1].append(x @ matrix.t())
        return found

    def like(self, flat: Iterator[Tensor], children: range) -> list[list[Tensor]]:
        """The next of `flat`, as `sums` has them."""
        count = 1 if self.equal else len(children)
        return [[next(flat) for _ in range(self.spec.sources)] for _ in range(count)]

    def pre(self, sums: list[list[Tensor]]) -> list[list[Tensor]]:
        """Pre-activations per child and source."""
        if self.equal or not self.coupled:
            return sums
        by_source = [
            couple(own, self.spec.coupling if mu is None else mu)
            for own, mu in zip(zip(*sums, strict=True), self.coupling, strict=True)
        ]
        return [
            [z if bias is None else z + bias for z, bias in zip(child, biases, strict=True)]
            for child, biases in zip(zip(*by_source, strict=True), self.bias, strict=True)
        ]

    def back_pre(
        self, to: _Piece, sums: list[list[Tensor]], to_pre: list[list[Tensor]], children: range
    ) -> list[list[Tensor]]:
        """Gradients of partial sums, per child and source, from those of the pre-activations.

        Args:
            to: Where gradients of biases and couplings are added.
            sums: Partial sums.
            to_pre: Gradients of the pre-activations.
            children: Which children.
        """
        for child, own in zip(children, to_pre, strict=False):
            for bias, gradient in zip(to.bias[child], own, strict=True):
                if bias is not None:
                    bias += gradient.sum(0)
        if self.equal:
            return to_pre * len(children)
        if not self.coupled:
            return to_pre
        by_source = []
        for source, (mu, to_mu) in enumerate(zip(self.coupling, to.coupling, strict=True)):
            own = [child[source] for child in to_pre]
            if to_mu is not None:
                values = [child[source] for child in sums]
                total = sum(values[1:], start=values[0])
                for value, gradient in zip(values, own, strict=True):
                    to_mu += ((total - value) * gradient).sum(0)
            by_source.append(couple(own, self.spec.coupling if mu is None else mu))  # symmetric
        return [list(child) for child in zip(*by_source, strict=True)]

    def add_up_(self, read: Sequence[Tensor], to_sums: list[list[Tensor]], children: range) -> None:
        """Adds to the up matrices' gradients, which this piece holds."""
        for child, own in zip(children, to_sums, strict=True):
            columns = self._by_child(read, child)
            for matrix, gradient, x in zip(self.up[child], own, columns, strict=True):
                if matrix is not None:
                    _add_product_(matrix, gradient.t(), x)

    def back_up_(
        self, to_read: Sequence[Tensor], to_sums: list[list[Tensor]], children: range
    ) -> None:
        """Adds to the gradients of what the children read."""
        for child, own in zip(children, to_sums, strict=True):
            columns = self._by_child(to_read, child)
            for matrix, gradient, to_x in zip(self.up[child], own, columns, strict=True):
                assert matrix is not None
                _add_product_(to_x, gradient, matrix)

    def add_inputs_(self, to_x: Tensor, to_read: Sequence[Tensor]) -> None:
        """Adds what `back_up_` found to the gradient of the inputs `[tokens, in_features]`."""
        for inputs, own in zip(self.inputs, to_read, strict=True):
            assert inputs is not None
            to_x += pick(own, inverse(inputs.unsqueeze(0), to_x.shape[1])[0])

    def target(self, result: Tensor) -> Tensor:
        """What the children write to: `result` itself if they write all outputs in order."""
        if self.outputs is None:
            return result
        return result.new_zeros(len(result), len(self.outputs))

    def add_outputs_(self, result: Tensor, target: Tensor) -> None:
        """Adds what was written to the outputs."""
        if self.places is not None:
            result += pick(target, self.places)

    def gather_outputs(self, gradient: Tensor) -> Tensor:
        """The gradient of what the children write."""
        return gradient if self.outputs is None else gradient.index_select(1, self.outputs)

    def _written(self, target: Tensor, child: int) -> Tensor:
        """Of what the children write, what one of them does."""
        if self.spec.fan_out == "replicate":
            return target
        own: Tensor = target.split(self.spec.child_outputs, 1)[child]
        return own

    def write_(self, target: Tensor, hidden: list[Tensor], children: range) -> None:
        """Adds what hidden activations (one tensor if children are equal) make."""
        assert self.down is not None
        for place, child in enumerate(children):
            own = hidden[min(place, len(hidden) - 1)]
            _add_product_(self._written(target, child), own, self.down[child].t())

    def back_down(self, to_target: Tensor, children: range) -> list[Tensor]:
        """Gradients of the hidden activations."""
        assert self.down is not None
        found = [self._written(to_target, child) @ self.down[child] for child in children]
        return [sum(found[1:], start=found[0])] if self.equal else found

    def add_down_(self, to_target: Tensor, hidden: list[Tensor], children: range) -> None:
        """Adds to the down matrices' gradients, which this piece holds."""
        for place, child in enumerate(children):
            if self.down is not None:
                own = hidden[min(place, len(hidden) - 1)]
                _add_product_(self.down[child], self._written(to_target, child).t(), own)
