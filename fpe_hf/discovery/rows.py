"""Index tensors: which row of a weight made each element of an activation.

They are ordinary CPU tensors, kept expanded (stride 0) along the axes on which they do not vary,
so that one costs as much as the hidden axis is long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

NO_ROW = -1
"""Index of an element that no row of the projection made."""


def compact(rows: Tensor) -> Tensor:
    """`rows`, with stride 0 along every axis on which it does not vary."""
    kept = rows
    for axis in range(rows.dim()):
        if rows.stride(axis) == 0 and rows.size(axis) > 1:
            kept = kept.narrow(axis, 0, 1)
    for axis in range(rows.dim()):
        first = kept.narrow(axis, 0, min(1, kept.size(axis)))
        if kept.size(axis) > 1 and bool((kept == first).all()):
            kept = first.clone()
    return kept.expand(rows.shape)


def varying(rows: Tensor) -> list[int]:
    """The axes along which a compact index tensor varies."""
    return [axis for axis in range(rows.dim()) if rows.size(axis) > 1 and rows.stride(axis) != 0]


def same_rows(first: Tensor, second: Tensor) -> bool:
    """Whether two compact index tensors are equal."""
    if first.shape != second.shape or varying(first) != varying(second):
        return False
    axes = varying(first)
    return torch.equal(narrowed(first, axes), narrowed(second, axes))


def channels(rows: Tensor, axis: int = -1) -> Tensor | None:
    """The row index of every channel along `axis`, if it is the same at every other position."""
    axis %= rows.dim()
    if not set(varying(rows)) <= {axis} or rows.numel() == 0:
        return None
    return narrowed(rows, [axis]).reshape(-1)


def narrowed(rows: Tensor, axes: Sequence[int]) -> Tensor:
    """The first of what lies along every axis but `axes`."""
    for axis in range(rows.dim()):
        if axis not in axes:
            rows = rows.narrow(axis, 0, 1)
    return rows


def varies(tensor: Tensor, axes: Iterable[int], dims: int) -> bool:
    """Whether `tensor`, broadcast to `dims` dimensions, varies along one of `axes`."""
    shift = dims - tensor.dim()
    own = [axis - shift for axis in axes if axis >= shift]
    return any(tensor.size(axis) > 1 and tensor.stride(axis) != 0 for axis in own)
