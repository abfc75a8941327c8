"""How much each input and each output of some parents matters, in float32.

Weights are converted a few inputs or outputs at a time: as a whole they may not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Measure = Callable[[Tensor, "int | tuple[int, ...]"], Tensor]
"""Reduces a float32 tensor, which it may overwrite, along one or more axes."""

_ALIGNED = 64  # sums over rows take columns in groups: pieces of whole groups are summed alike
_PIECE = 1 << 20


def norm(weight: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Euclidean norm, all of `dim` taken as one axis."""
    flat, axis = (weight.flatten(0, 1), 0) if isinstance(dim, tuple) else (weight, dim)
    norms: Tensor = flat.norm(dim=axis)
    return norms


def mean_square(weight: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Mean of the squares."""
    return weight.square_().mean(dim=dim)


def of_inputs(ups: Sequence[Tensor], measure: Measure) -> Tensor:
    """A measure of every input.

    Args:
        ups: The parents' incoming weights, `[sources, parents, inputs]` each.
        measure: What to compute.

    Returns:
        float32 `[inputs]`, on the CPU.
    """
    sources, (parents, inputs) = sum(up.shape[0] for up in ups), ups[0].shape[1:]

    def read(piece: slice, scratch: Tensor) -> Tensor:
        part = scratch.view(sources, parents, -1)
        for own, up in zip(part.split([up.shape[0] for up in ups]), ups, strict=True):
            own.copy_(up[..., piece])
        return measure(part, (0, 1))

    return _by_piece(inputs, sources * parents, ups[0].device, read)


def of_outputs(down: Tensor, measure: Measure) -> Tensor:
    """A measure of every output.

    Args:
        down: The parents' outgoing weights `[outputs, parents]`.
        measure: What to compute.

    Returns:
        float32 `[outputs]`, on the CPU.
    """
    outputs, parents = down.shape
    turned = down.stride(0) < down.stride(1)  # sums depend on the order in memory: keep it

    def read(piece: slice, scratch: Tensor) -> Tensor:
        part = scratch.view(parents, -1).t() if turned else scratch.view(-1, parents)
        return measure(part.copy_(down[piece]), 1)

    return _by_piece(outputs, parents, down.device, read)


def _by_piece(
    items: int, size: int, device: torch.device, read: Callable[[slice, Tensor], Tensor]
) -> Tensor:
    """What `read` makes of every piece, given scratch memory of `size` numbers for each item."""
    pieces = list(_pieces(items, size))
    largest = max(piece.stop - piece.start for piece in pieces)
    # One for all: glibc would not hand the memory of one piece to the next.
    scratch = torch.empty(largest * size, dtype=torch.float32, device=device)
    measured = torch.empty(items, dtype=torch.float32, device="cpu")
    for piece in pieces:
        measured[piece] = read(piece, scratch[: (piece.stop - piece.start) * size])
    return measured


def _pieces(items: int, size: int) -> Iterator[slice]:
    """Slices of about `_PIECE` numbers, `_ALIGNED` items or a multiple; the last has the rest."""
    step = _ALIGNED * max(1, _PIECE // (_ALIGNED * size))
    count = max(1, items // step)
    for place in range(count):
        yield slice(place * step, items if place == count - 1 else (place + 1) * step)
