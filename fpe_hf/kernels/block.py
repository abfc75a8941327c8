"""The products of the `block` layout in plain torch: differentiable, on any device.

Tokens are rows. A tile's child is one dense matrix over the inputs that it reads; see
`fpe_hf.planning.BlockSpec` for the order in which the packed weights hold these matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..planning import BlockSpec

Blocks = list[list[Tensor]]
"""`[tile][child]`."""


def up_blocks(spec: BlockSpec, weight: Tensor) -> Blocks:
    """The matrices of an up projection, each `[sources, parents, inputs]`: views.

    Args:
        spec: The block.
        weight: The packed weights, or their gradient.
    """
    sources = spec.sources_per_up
    shapes = [
        (sources, stop - start, inputs)
        for start, stop in spec.tiles
        for inputs in spec.child_inputs
    ]
    return _cut(spec, weight, shapes)


def down_blocks(spec: BlockSpec, weight: Tensor) -> Blocks:
    """The matrices of a down projection, each `[outputs, parents]`: views.

    With a replicated fan-out the children of a tile write the same outputs, and their matrices lie
    side by side.
    """
    if spec.fan_out == "partition":
        shapes = [(o, stop - start) for start, stop in spec.tiles for o in spec.child_outputs]
        return _cut(spec, weight, shapes)
    outputs, alpha = spec.child_outputs[0], spec.alpha
    sizes = [outputs * alpha * (stop - start) for start, stop in spec.tiles]
    return [list(own.view(outputs, alpha, -1).unbind(1)) for own in weight.split(sizes)]


def _cut(spec: BlockSpec, weight: Tensor, shapes: Sequence[tuple[int, ...]]) -> Blocks:
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = [own.view(s) for own, s in zip(weight.split(sizes), shapes, strict=True)]
    return [parts[first : first + spec.alpha] for first in range(0, len(parts), spec.alpha)]


def is_coupled(spec: BlockSpec) -> bool:
    """Whether a child's pre-activation depends on its siblings' partial sums."""
    return spec.coupling != 0.0 or spec.learn_coupling


def couple(sums: Sequence[Tensor], coupling: Tensor | float) -> list[Tensor]:
    """Children's pre-activations from their partial sums: `z_c + mu * sum_{k != c} z_k`.

    Args:
        sums: One tensor per child. At `mu = 1`, one tensor may stand for all children.
        coupling: `mu`: a number, or anything that broadcasts to a partial sum.

    Returns:
        As many tensors; at `mu = 1` the same one for all children.
    """
    if isinstance(coupling, float) and coupling == 0.0:
        return list(sums)
    total = sum(sums[1:], start=sums[0])
    if isinstance(coupling, float) and coupling == 1.0:
        return [total] * len(sums)
    return [own + coupling * (total - own) for own in sums]


def up(
    spec: BlockSpec,
    x: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coupling: Tensor | None,
) -> Tensor:
    """The up projection of a block.

    Args:
        spec: The block.
        x: `[..., in_features]`.
        inputs: Inputs of each tile, child after child `[tiles, sum(child_inputs)]`.
        weight: The packed weights.
        bias: One per parent or per child, see `BlockSpec.bias`, or `None`.
        coupling: The trainable coupling `[sources * parents]`, or `None` for the spec's.

    Returns:
        `[..., sources * hidden]`, rows in the order of the parent's sources.
    """
    sources = spec.sources_per_up
    own_bias = None if bias is None else bias.view(sources, -1)
    mu = spec.coupling if coupling is None else coupling.view(sources, -1)
    read = x.index_select(-1, inputs.flatten().int()).split(spec.child_inputs * spec.tile_count, -1)
    made: list[Tensor] = []
    for tile, blocks in enumerate(up_blocks(spec, weight)):
        start, stop = spec.tiles[tile]
        biases = _biases(spec, own_bias, start, stop)
        columns = read[spec.alpha * tile : spec.alpha * (tile + 1)]
        uncoupled = isinstance(mu, float) and mu == 0.0
        sums = [
            functional.linear(xs, block.flatten(0, 1), b if uncoupled else None)
            for xs, block, b in zip(columns, blocks, biases, strict=True)
        ]
        if not uncoupled:
            own = mu if isinstance(mu, float) else mu[:, start:stop].flatten().to(sums[0].dtype)
            sums = couple(sums, own)
            if bias is not None:
                pairs = zip(sums, biases, strict=True)
                sums = [z + b.to(z.dtype) for z, b in pairs if b is not None]
        made += [z.unflatten(-1, (sources, -1)) for z in sums] if sources > 1 else sums
    rows = torch.cat(made, -1)
    if sources == 1:
        return rows
    return (rows.transpose(-1, -2) if spec.fused == "interleaved" else rows).flatten(-2)


def _biases(spec: BlockSpec, bias: Tensor | None, start: int, stop: int) -> Sequence[Tensor | None]:
    """The bias of each child of a tile, `[sources * parents]`.

    Args:
        spec: The block.
        bias: `[sources, parents]` or `[sources, hidden]`.
        start: First parent of the tile.
        stop: Last parent, plus one.
    """
    if bias is None:
        return [None] * spec.alpha
    if spec.bias == "shared":
        return [bias[:, start:stop].flatten()] * spec.alpha
    own = bias[:, spec.alpha * start : spec.alpha * stop]
    return [child.flatten() for child in own.split(stop - start, 1)]


def down(
    spec: BlockSpec, hidden: Tensor, outputs: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The down projection of a block.

    Args:
        spec: The block.
        hidden: `[..., hidden]`.
        outputs: Outputs of each tile `[tiles, outputs]`, or `None`: all, in order.
        weight: The packed weights.
        bias: `[out_features]` or `None`.

    Returns:
        `[..., out_features]`.
    """
    spread = None if outputs is None else inverse(outputs, spec.out_features)
    written = []
    for tile, own in enumerate(hidden.split(hidden_sizes(spec), -1)):
        start, stop = spec.tiles[tile]
        if spec.fan_out == "replicate":
            size = spec.child_outputs[0] * spec.alpha
            matrix = weight[size * start : size * stop].view(spec.child_outputs[0], -1)
            written.append(functional.linear(own, matrix))
        else:
            size = sum(spec.child_outputs)
            blocks = _cut(
                spec,
                weight[size * start : size * stop],
                [(count, stop - start) for count in spec.child_outputs],
            )[0]
            pairs = zip(own.split(stop - start, -1), blocks, strict=True)
            written.append(torch.cat([functional.linear(h, block) for h, block in pairs], -1))
        if spread is not None:
            written[-1] = pick(written[-1], spread[tile])
    result = sum(written[1:], start=written[0])
    return result if bias is None else result + bias.to(result.dtype)


def hidden_sizes(spec: BlockSpec) -> list[int]:
    """Hidden neurons of each tile."""
    return [spec.alpha * (stop - start) for start, stop in spec.tiles]


def inverse(index: Tensor, width: int) -> Tensor:
    """Where each of `width` places lies in the rows of an index: int64 `[rows, width]`.

    A place that a row does not name gets the number after its last entry, as `pick` takes it.

    Args:
        index: `[rows, entries]`, different entries in each row.
        width: How many places there are.
    """
    rows, entries = index.shape
    there = torch.arange(entries, device=index.device, dtype=torch.int64).expand(rows, -1)
    places = torch.full((rows, width), entries, device=index.device, dtype=torch.int64)
    return places.scatter(1, index.long(), there)


def pick(values: Tensor, places: Tensor) -> Tensor:
    """Entries of the last axis, with a zero after the last; see `inverse`."""
    if values.shape[-1] < places.shape[0]:
        values = functional.pad(values, (0, 1))
    return values.index_select(-1, places)


def dense_up(spec: BlockSpec, inputs: Tensor, weight: Tensor, coupling: Tensor | None) -> Tensor:
    """An up projection with its zeros filled in, `[sources, hidden of all experts, in_features]`.

    Args:
        spec: The block.
        inputs: See `up`.
        weight: See `up`.
        coupling: See `up`.
    """
    sources = spec.sources_per_up
    mu = spec.coupling if coupling is None else coupling.view(sources, -1, 1)
    made = []
    for tile, blocks in enumerate(up_blocks(spec, weight)):
        start, stop = spec.tiles[tile]
        columns = inputs[tile].long().split(spec.child_inputs)
        filled = [
            block.new_zeros(*block.shape[:2], spec.in_features).scatter(
                2, own.expand_as(block), block
            )
            for own, block in zip(columns, blocks, strict=True)
        ]
        made += couple(filled, mu if isinstance(mu, float) else mu[:, start:stop])
    return torch.cat(made, 1)


def dense_down(spec: BlockSpec, outputs: Tensor | None, weight: Tensor) -> Tensor:
    """A down projection with its zeros filled in, `[out_features, hidden of all experts]`.

    Args:
        spec: The block.
        outputs: See `down`.
        weight: See `down`.
    """
    made = []
    for tile, blocks in enumerate(down_blocks(spec, weight)):
        if outputs is None:
            made += blocks
            continue
        whole = outputs[tile].long()
        replicated = spec.fan_out == "replicate"
        rows = [whole] * spec.alpha if replicated else whole.split(spec.child_outputs)
        made += [
            block.new_zeros(spec.out_features, block.shape[1]).index_copy(0, own, block)
            for own, block in zip(rows, blocks, strict=True)
        ]
    return torch.cat(made, 1)
