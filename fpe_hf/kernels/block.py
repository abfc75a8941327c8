"""The products of the `block` layout in plain torch operations, differentiable, on any device.

Tokens are columns here. The children's matrices come first in every product, as stored, and what
they read and write are rows: gathering rows copies memory in long runs, children write side by
side, and the matrices of many children (of many tiles, too) are one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ..planning import BlockSpec


@dataclass(frozen=True)
class Part:
    """Some children of consecutive tiles that have the same number of parents.

    Attributes:
        first: The first tile.
        count: Number of tiles.
        parents: Parents of each tile.
        start: Parents before the first tile.
        child: The first child.
        children: Number of children.
    """

    first: int
    count: int
    parents: int
    start: int
    child: int
    children: int

    @property
    def rows(self) -> slice:
        """The parents of all its tiles."""
        return slice(self.start, self.start + self.count * self.parents)

    @property
    def hidden(self) -> int:
        """Its hidden neurons."""
        return self.count * self.children * self.parents

    def index(self, table: Tensor, sizes: Sequence[int]) -> Tensor:
        """Its part `[tiles, rows]` of an index of all tiles and children.

        Args:
            table: `[all tiles, rows of all children]`.
            sizes: Rows of each child.
        """
        first = sum(sizes[: self.child])
        rows = sum(sizes[self.child : self.child + self.children])
        return table[self.first : self.first + self.count, first : first + rows]


def whole_parts(spec: BlockSpec) -> tuple[Part, ...]:
    """A block in as few parts as there are sizes of tiles, one or two."""
    parts: list[Part] = []
    for tile, (start, stop) in enumerate(spec.tiles):
        if parts and parts[-1].parents == stop - start:
            parts[-1] = replace(parts[-1], count=parts[-1].count + 1)
        else:
            parts.append(Part(tile, 1, stop - start, start, 0, spec.alpha))
    return tuple(parts)


def is_coupled(spec: BlockSpec) -> bool:
    """Whether a child's pre-activation depends on the other children's partial sums."""
    return spec.coupling != 0.0 or spec.learn_coupling


def small_parts(spec: BlockSpec, most: int) -> Iterator[Part]:
    """A block in parts of at most `most` hidden neurons, or of single tiles or children.

    Coupled children stay together.
    """
    coupled = is_coupled(spec)
    for part in whole_parts(spec):
        tiles = max(1, most // (part.children * part.parents))
        children = part.children if coupled else max(1, most // part.parents)
        for first in range(0, part.count, tiles):
            count = min(tiles, part.count - first)
            own = replace(
                part, first=part.first + first, count=count, start=part.start + first * part.parents
            )
            for child in range(0, part.children, children):
                left = min(children, part.children - child)
                yield replace(own, child=child, children=left)


@dataclass(frozen=True, eq=False)
class Children:
    """The matrices of consecutive children of equal shape.

    Attributes:
        offset: Rows that the children before them in the part read (or write).
        size: Rows that each reads (or writes).
        first: The first of them within the part.
        matrices: `[tiles, children, ...]`, a view.
    """

    offset: int
    size: int
    first: int
    matrices: Tensor

    @property
    def count(self) -> int:
        """Number of children."""
        return self.matrices.shape[1]

    def rows(self, rows: Tensor) -> Tensor:
        """Theirs among the part's rows: `[tiles, all rows, n]` -> `[tiles, children, rows, n]`."""
        own = rows.narrow(1, self.offset, self.count * self.size)
        apart: Tensor = own.unflatten(1, (self.count, self.size))
        return apart

    def hidden(self, hidden: Tensor) -> Tensor:
        """Their own among the part's hidden activations `[tiles, children, ...]`."""
        return hidden.narrow(1, self.first, self.count)


def up_matrices(spec: BlockSpec, part: Part, weight: Tensor) -> Iterator[Children]:
    """The matrices `[tiles, children, sources * parents, inputs]` of an up projection.

    Args:
        spec: The block.
        part: Which of them.
        weight: The packed weights of the whole projection (or their gradient).
    """
    height = spec.sources_per_up * part.parents
    before = spec.sources_per_up * part.start * sum(spec.child_inputs)
    for run in _runs(part, weight, before, height, spec.child_inputs):
        yield replace(run, matrices=run.matrices.unflatten(-1, (height, run.size)))


def down_matrices(spec: BlockSpec, part: Part, weight: Tensor) -> Iterator[Children]:
    """The matrices `[tiles, children, outputs, parents]` of a down projection.

    With a replicated fan-out the children of a tile write the same outputs, and lie side by side in
    one matrix: `[tiles, 1, outputs, children * parents]`.
    """
    if spec.fan_out == "replicate":
        outputs, width = spec.child_outputs[0], spec.alpha * part.parents
        start = spec.alpha * part.start * outputs
        flat = weight.narrow(0, start, part.count * outputs * width)
        tiles = flat.view(part.count, 1, outputs, width)
        own = tiles.narrow(3, part.child * part.parents, part.children * part.parents)
        yield Children(0, outputs, 0, own)
        return
    before = part.start * sum(spec.child_outputs)
    for run in _runs(part, weight, before, part.parents, spec.child_outputs):
        yield replace(run, matrices=run.matrices.unflatten(-1, (run.size, part.parents)))


def _runs(
    part: Part, weight: Tensor, before: int, width: int, sizes: Sequence[int]
) -> Iterator[Children]:
    """Flat matrices `[tiles, children, size * width]`: of all children at once, or one by one."""
    total = sum(sizes)
    flat = weight.narrow(0, before, part.count * width * total).view(part.count, width * total)
    own = sizes[part.child : part.child + part.children]
    skipped = width * sum(sizes[: part.child])
    if len(set(own)) == 1:
        numbers = flat.narrow(1, skipped, width * sum(own))
        yield Children(0, own[0], 0, numbers.unflatten(1, (len(own), -1)))
        return
    offsets = accumulate(own, initial=0)
    for child, (offset, size) in enumerate(zip(offsets, own, strict=False)):
        numbers = flat.narrow(1, skipped + width * offset, width * size)
        yield Children(offset, size, child, numbers.unsqueeze(1))


LARGE = 1 << 14
"""Numbers in a matrix that make a call of its own worth while."""

FEW_TOKENS = 4
"""Up to this many tokens, processors are faster with tokens as rows."""


def multiply(matrices: Tensor, columns: Tensor) -> Tensor:
    """`[tiles, children, m, k] @ [tiles, children, k, tokens]`."""
    left, right = matrices.flatten(0, 1), columns.flatten(0, 1)
    tokens, on_cpu = right.shape[-1], right.is_cpu and not torch.compiler.is_compiling()
    if on_cpu and tokens == 1 and left[0].numel() >= LARGE:
        # A batch of matrix-vector products is not made of the fast ones.
        single = [torch.mv(m, column) for m, column in zip(left, right.squeeze(-1), strict=True)]
        product = torch.stack(single).unsqueeze(-1)
    elif on_cpu and tokens <= FEW_TOKENS:
        product = torch.bmm(right.mT.contiguous(), left.mT).mT
    else:
        product = torch.bmm(left, right)
    apart: Tensor = product.unflatten(0, matrices.shape[:2])
    return apart


def couple(sums: Tensor, coupling: Tensor | float) -> Tensor:
    """Children's pre-activations: `z_c + mu * sum_{k != c} z_k`.

    Args:
        sums: Partial sums `[tiles, alpha, sources, parents, tokens]`.
        coupling: `mu`: a number, or one for each parent `[tiles, 1, sources, parents, 1]`.

    Returns:
        As `sums`; only one child if the children are equal.
    """
    if isinstance(coupling, float) and coupling == 0.0:
        return sums
    total = sums.sum(1, keepdim=True)
    if isinstance(coupling, float) and coupling == 1.0:
        return total
    return sums + coupling * (total - sums)


def couplings(
    spec: BlockSpec, part: Part, coupling: Tensor | None, dtype: torch.dtype
) -> Tensor | float:
    """The coupling of a part: a number, or `[tiles, 1, sources, parents, 1]`.

    Args:
        spec: The block.
        part: Which children.
        coupling: The trainable coupling of the whole projection, flat, or `None`.
        dtype: Of the result.
    """
    return spec.coupling if coupling is None else per_parent(spec, part, coupling.to(dtype))


def biases(spec: BlockSpec, part: Part, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """The biases of a part `[tiles, children or 1, sources, parents, 1]`.

    Args:
        spec: The block.
        part: Which children.
        bias: Of the whole projection, flat.
        dtype: Of the result.
    """
    spread = per_parent if spec.bias == "shared" else per_child
    return spread(spec, part, bias.to(dtype))


def per_parent(spec: BlockSpec, part: Part, values: Tensor) -> Tensor:
    """Numbers per parent, flat, for the tiles of a part: `[tiles, 1, sources, parents, 1]`,
    a view."""
    own = values.view(spec.sources_per_up, 1, -1)[..., part.rows]
    apart: Tensor = own.unflatten(2, (part.count, part.parents))
    return apart.permute(2, 1, 0, 3).unsqueeze(-1)


def per_child(spec: BlockSpec, part: Part, values: Tensor) -> Tensor:
    """Numbers per child, flat, for a part: `[tiles, children, sources, parents, 1]`, a view."""
    rows = slice(spec.alpha * part.rows.start, spec.alpha * part.rows.stop)
    tiles = values.view(spec.sources_per_up, -1)[:, rows]
    apart: Tensor = tiles.unflatten(1, (part.count, spec.alpha, part.parents))
    return apart.narrow(2, part.child, part.children).permute(1, 2, 0, 3).unsqueeze(-1)


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """Rows `[n, tokens]` by an index `[tiles, k]` of any integer dtype: `[tiles, k, tokens]`."""
    found: Tensor = rows.index_select(0, index.flatten().int()).unflatten(0, index.shape)
    return found


def partial_sums(
    spec: BlockSpec, part: Part, weight: Tensor, inputs: Tensor, rows: Tensor
) -> Tensor:
    """What children make of their inputs: `[tiles, children, sources, parents, tokens]`.

    Args:
        spec: The block.
        part: Which children.
        weight: The up projection's weights.
        inputs: Its index `[all tiles, inputs]`.
        rows: `[in_features, tokens]`.
    """
    gathered = gather(rows, part.index(inputs, spec.child_inputs))
    found = [multiply(run.matrices, run.rows(gathered)) for run in up_matrices(spec, part, weight)]
    sums: Tensor = joined(found).unflatten(2, (spec.sources_per_up, part.parents))
    return sums


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors `[tiles, n, ...]`, one after the other along `n`."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


def side_by_side(spec: BlockSpec, part: Part, hidden: Tensor) -> Tensor:
    """Hidden activations as the down projection's matrices meet them.

    Args:
        spec: The block.
        part: Which children.
        hidden: `[tiles, children, parents, tokens]`; one child if they are equal.

    Returns:
        The same; with a replicated fan-out `[tiles, 1, children * parents, tokens]`.
    """
    hidden = hidden.expand(-1, part.children, -1, -1)
    return hidden.flatten(1, 2).unsqueeze(1) if spec.fan_out == "replicate" else hidden


def written(spec: BlockSpec, part: Part, weight: Tensor, hidden: Tensor) -> Tensor:
    """What children write: `[tiles, outputs of the part, tokens]`.

    Args:
        spec: The block.
        part: Which children.
        weight: The down projection's weights.
        hidden: See `side_by_side`, which made it.
    """
    found = [
        multiply(run.matrices, run.hidden(hidden)).flatten(1, 2)
        for run in down_matrices(spec, part, weight)
    ]
    return joined(found)


def output_index(spec: BlockSpec, part: Part, outputs: Tensor) -> Tensor:
    """The outputs `[tiles, outputs of the part]` that children write."""
    if spec.fan_out == "replicate":
        return outputs[part.first : part.first + part.count]
    return part.index(outputs, spec.child_outputs)


def scatter_(
    total: Tensor, spec: BlockSpec, part: Part, outputs: Tensor | None, rows: Tensor
) -> Tensor:
    """Adds what children wrote, `[tiles, outputs of the part, tokens]`, to `[outputs, tokens]`."""
    if outputs is None:
        return total.add_(rows[0] if len(rows) == 1 else rows.sum(0))
    index = output_index(spec, part, outputs).int()
    if rows.is_cpu:
        rows = rows.flatten(0, 1)
        if not torch.compiler.is_compiling() and rows.shape[1] == 1:  # much quicker than rows of one
            total.squeeze(1).index_add_(0, index.flatten(), rows.squeeze(1))
            return total
        return total.index_add_(0, index.flatten(), rows)
    for own, wrote in zip(index, rows, strict=True):  # tile by tile: no atomic additions
        total.index_add_(0, own, wrote)
    return total


def project_up(
    spec: BlockSpec,
    parts: Sequence[Part],
    x: Tensor,
    weight: Tensor,
    inputs: Tensor,
    bias: Tensor | None,
    coupling: Tensor | None,
) -> Tensor:
    """The up projection of a block.

    Args:
        spec: The block.
        parts: All of it, as `whole_parts` has it.
        x: `[..., in_features]`.
        weight: `[values]`.
        inputs: Inputs of each tile, child after child `[tiles, inputs]`.
        bias: Flat, or `None`.
        coupling: Flat, or `None`.

    Returns:
        `[..., sources * hidden]`, rows in the order of the parent's sources.
    """
    rows = x.reshape(-1, spec.in_features).t()
    made = []
    for part in parts:
        sums = partial_sums(spec, part, weight, inputs, rows)
        own = couple(sums, couplings(spec, part, coupling, sums.dtype))
        if bias is not None:
            own = own + biases(spec, part, bias, sums.dtype)
        made.append(own.expand_as(sums))
    # [tokens, sources, hidden] or, interleaved, [tokens, hidden, sources]
    if spec.fused == "interleaved":
        flat = [own.permute(4, 0, 1, 3, 2).flatten(1, 3) for own in made]
    else:
        flat = [own.permute(4, 2, 0, 1, 3).flatten(2) for own in made]
    axis = 1 if spec.fused == "interleaved" else 2
    hidden = (flat[0] if len(flat) == 1 else torch.cat(flat, axis)).flatten(1)
    return hidden.reshape(*x.shape[:-1], spec.sources_per_up * spec.hidden)


def project_down(
    spec: BlockSpec,
    parts: Sequence[Part],
    hidden: Tensor,
    weight: Tensor,
    outputs: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """The down projection of a block.

    Args:
        spec: The block.
        parts: All of it, as `whole_parts` has it.
        hidden: `[..., hidden]`.
        weight: `[values]`.
        outputs: Outputs of each tile `[tiles, outputs]`, or `None`: all, in order.
        bias: `[out_features]` or `None`.

    Returns:
        `[..., out_features]`.
    """
    columns = hidden.reshape(-1, spec.hidden).t()
    total: Tensor | None = None
    for part in parts:
        own = columns[spec.alpha * part.rows.start : spec.alpha * part.rows.stop]
        own = own.unflatten(0, (part.count, spec.alpha, part.parents))
        rows = written(spec, part, weight, side_by_side(spec, part, own))
        if total is None:
            total = rows.new_zeros(spec.out_features, rows.shape[-1])
        scatter_(total, spec, part, outputs, rows)
    assert total is not None
    result = total.t().reshape(*hidden.shape[:-1], spec.out_features)
    return result if bias is None else result + bias.to(result.dtype)
