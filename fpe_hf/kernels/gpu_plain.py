"""The products of `triton_block` and `triton_element` with plain operations of PyTorch.

What the registered operators do where Triton does not run, and what its kernels are measured by.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ..packing import unpack
from .gpu_shapes import BlockShape, ElementShape


def gather_blocks(
    narrow: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: BlockShape,
    *,
    coupled: bool = False,
    activation: str = "none",
    keep_pre: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `triton_block.gather_blocks`."""
    out = narrow.new_empty(len(narrow), shape.wide)
    hidden = by_source(out, shape)
    wide = [narrow[:, columns] @ block.t() for columns, block in _blocks(index, weight, shape)]
    for tile, (start, stop) in enumerate(shape.tiles):
        children = wide[tile * shape.alpha : (tile + 1) * shape.alpha]
        if coupled:
            children = [torch.stack(children).sum(0)] * shape.alpha
        own = torch.stack([child.unflatten(1, (shape.sources, -1)) for child in children], 2)
        hidden[:, :, shape.alpha * start : shape.alpha * stop] = own.flatten(2)
    if bias is not None:
        per_child = bias.view(shape.sources, -1)
        if bias.numel() != shape.wide:
            per_child = give_children(per_child, shape)
        hidden += per_child
    return (activate(out, activation), out if keep_pre else None)


def scatter_blocks(
    wide: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: BlockShape,
    *,
    shared: bool = False,
) -> Tensor:
    """See `triton_block.scatter_blocks`."""
    out = wide.new_zeros(len(wide), shape.features)
    rows = _rows(wide, shape, shared)
    for own, (columns, block) in zip(rows, _blocks(index, weight, shape), strict=True):
        out[:, columns] += own @ block
    return out if bias is None else out.add_(bias)


def weight_blocks(
    wide: Tensor, narrow: Tensor, index: Tensor, shape: BlockShape, *, shared: bool = False
) -> Tensor:
    """See `triton_block.weight_blocks`."""
    out = wide.new_empty(shape.weights)
    rows = _rows(wide, shape, shared)
    for own, (columns, block) in zip(rows, _blocks(index, out, shape), strict=True):
        block.copy_(own.t() @ narrow[:, columns])
    return out


def by_source(wide: Tensor, shape: BlockShape) -> Tensor:
    """A view `[tokens, sources, hidden]` of `[tokens, wide]`."""
    apart: Tensor
    if shape.interleaved:
        apart = wide.unflatten(1, (-1, shape.sources))
        return apart.transpose(1, 2)
    apart = wide.unflatten(1, (shape.sources, -1))
    return apart


def give_children(per_parent: Tensor, shape: BlockShape) -> Tensor:
    """Repeats a value per parent for its children: `[..., parents]` -> `[..., hidden]`."""
    parts = [
        per_parent[..., None, start:stop]
        .expand(*per_parent.shape[:-1], shape.alpha, -1)
        .flatten(-2)
        for start, stop in shape.tiles
    ]
    return torch.cat(parts, -1)


def sum_children(per_child: Tensor, shape: BlockShape) -> Tensor:
    """The transpose of `give_children`: `[..., hidden]` -> `[..., parents]`."""
    whole = shape.parents // shape.tile_size * shape.tile_size
    full, rest = per_child.split([shape.alpha * whole, shape.alpha * (shape.parents - whole)], -1)
    parts = [full.unflatten(-1, (-1, shape.alpha, shape.tile_size)).sum(-2).flatten(-2)]
    if whole < shape.parents:
        parts.append(rest.unflatten(-1, (shape.alpha, -1)).sum(-2))
    return torch.cat(parts, -1)


def activate(z: Tensor, activation: str) -> Tensor:
    """Applies an activation by name; without one, `z` itself."""
    if activation == "relu":
        return functional.relu(z)
    if activation == "silu":
        return functional.silu(z)
    if activation == "gelu":
        return functional.gelu(z)
    if activation == "gelu_tanh":
        return functional.gelu(z, approximate="tanh")
    return z


def element_product(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    starts: Tensor | None,
    bias: Tensor | None,
    coupling: Tensor | None,
    shape: ElementShape,
) -> Tensor:
    """See `triton_element.element_product`; `starts` is not needed here."""
    full = (shape.rows, shape.columns)
    kept = torch.ones(full, dtype=torch.bool, device=x.device)
    if keep is not None:
        kept = unpack(keep, 1, kept.numel()).view(full).bool()
    kept = kept[:, None].expand(-1, 1 if owner is not None else shape.alpha, -1)
    matrix = weight.new_zeros(kept.shape).masked_scatter(kept, weight)
    if owner is not None:
        codes = unpack(owner, shape.bits, shape.code_rows * shape.columns)
        codes = codes.view(1, shape.code_rows, 1, shape.columns)
        children = torch.arange(shape.alpha, device=x.device)[:, None]
        groups = 1 if shape.code_rows == 1 else shape.rows // shape.code_rows
        matrix = matrix.unflatten(0, (groups, -1)) * (codes == children)
        matrix = matrix.flatten(0, 1)
    if not shape.up:
        y = x @ matrix.flatten(1).t()
        return y if bias is None else y + bias
    z: Tensor = x @ matrix.flatten(0, 1).t()
    z = z.unflatten(1, (shape.sources, -1, shape.alpha)).transpose(2, 3)
    if coupling is not None:
        per_parent = coupling.to(z.dtype).expand(shape.rows).view(shape.sources, 1, -1)
        z = z + per_parent * (z.sum(2, keepdim=True) - z)
    if bias is not None:
        per_source = bias.view(shape.sources, -1, z.shape[-1])
        z = z + per_source
    z = z.flatten(2)
    return (z.transpose(1, 2) if shape.interleaved else z).flatten(1)


def row_starts(keep: Tensor, shape: ElementShape) -> Tensor:
    """Kept entries before every row of the parent's matrix, and in all: int64 `[rows + 1]`.

    Args:
        keep: Packed mask of kept entries, by row.
        shape: Of the projection.
    """
    kept = unpack(keep, 1, shape.rows * shape.columns).view(shape.rows, shape.columns)
    return functional.pad(kept.sum(1, dtype=torch.int64).cumsum(0), (1, 0))


def _blocks(index: Tensor, weight: Tensor, shape: BlockShape) -> Iterator[tuple[Tensor, Tensor]]:
    """Indexed columns and weights, as a view `[sources * parents, columns]`, of each block."""
    first = 0
    for tile, (start, stop) in enumerate(shape.tiles):
        rows = shape.sources * (stop - start)
        columns = index[tile].long().split(shape.counts)
        for own in columns:
            block = weight[first : first + rows * len(own)]
            first += rows * len(own)
            yield own, block.view(rows, len(own)) if shape.up else block.view(len(own), rows).t()


def _rows(wide: Tensor, shape: BlockShape, shared: bool) -> Iterator[Tensor]:
    """The wide columns of each block, `[tokens, sources * parents]`."""
    hidden = wide.unflatten(1, (shape.sources, -1)) if shared else by_source(wide, shape)
    for start, stop in shape.tiles:
        for child in range(shape.alpha):
            first = start if shared else shape.alpha * start + child * (stop - start)
            yield hidden[:, :, first : first + stop - start].flatten(1)
