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
        flat = _narrow(weight, 0, start, part.count * outputs * width)
        tiles = flat.view(part.count, 1, outputs, width)
        own = _narrow(tiles, 3, part.child * part.parents, part.children * part.parents)
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
    flat = _narrow(weight, 0, before, part.count * width * total)
    flat = flat.view(part.count, width * total)
    own = sizes[part.child : part.child + part.children]
    skipped = width * sum(sizes[: part.child])
    if len(set(own)) == 1:
        numbers = _narrow(flat, 1, skipped, width * sum(own))
        yield Children(0, own[0], 0, numbers.unflatten(1, (len(own), -1)))
        return
    offsets = accumulate(own, initial=0)
    for child, (offset, size) in enumerate(zip(offsets, own, strict=False)):
        numbers = flat.narrow(1, skipped + width * offset, width * size)
        yield Children(offset, size, child, numbers.unsqueeze(1))


def _narrow(tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
    """`tensor.narrow(...)`, but nothing where that is all: backwards it would copy a gradient."""
    return tensor if length == tensor.shape[dim] else tensor.narrow(dim, start, length)


LARGE = 1 << 14
"""Numbers in a matrix that make a call of its own worth while."""

FEW_TOKENS = 4
"""Up to this many tokens, processors are faster with tokens as rows."""


def multiply(matrices: Tensor, columns: Tensor) -> Tensor:
    """`[tiles, children, m, k] @ [tiles, children, k, tokens]`."""
    left, right = matrices.flatten(0, 1), columns.flatten(0, 1)
    tokens, on_cpu = right.shape[-1], right.is_cpu and not torch.compiler.is_compiling()
    if on_cpu and tokens == 1 and left.shape[1:].numel() >= LARGE:
        # A batch of matrix-vector products is not made of the fast ones.
        single = map(torch.mv, left.unbind(), right.squeeze(-1).unbind())
        product = torch.stack(list(single)).unsqueeze(-1)
    elif on_cpu and tokens <= FEW_TOKENS:
        product = torch.bmm(right.mT.contiguous(), left.mT).mT
    elif len(left) == 1:  # of which the batch's stride may be any, and bmm copy the matrix for it
        product = torch.mm(left[0], right[0]).unsqueeze(0)
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


class UpPart:
    """What an up projection holds for a part, as views, or the gradients of that.

    Args:
        spec: The block.
        part: Which children.
        inputs: Index of the projection `[all tiles, inputs]`.
        weight: Its weights, flat, or `None` where their gradient is not wanted.
        bias: Its bias, flat, or `None`.
        coupling: Its trainable coupling, flat, or `None`.

    Attributes:
        index: Inputs of the part, flat.
        runs: Its matrices.
        bias: Its biases `[tiles, children or 1, sources, parents, 1]` or `None`.
        coupling: Its coupling: a number, or `[tiles, 1, sources, parents, 1]`.
    """

    def __init__(
        self,
        spec: BlockSpec,
        part: Part,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        coupling: Tensor | None,
    ) -> None:
        self.part = part
        self.sources = spec.sources_per_up
        self.index = part.index(inputs, spec.child_inputs).flatten().int()
        self.runs = [] if weight is None else list(up_matrices(spec, part, weight))
        spread = _per_parent if spec.bias == "shared" else _per_child
        self.bias = None if bias is None else spread(spec, part, bias)
        mu = spec.coupling if coupling is None else _per_parent(spec, part, coupling)
        self.coupling: Tensor | float = mu

    def gather(self, rows: Tensor) -> Tensor:
        """What the children read, `[tiles, inputs, tokens]`, of `[in_features, tokens]`."""
        found: Tensor = rows.index_select(0, self.index).unflatten(0, (self.part.count, -1))
        return found

    def sums(self, rows: Tensor) -> Tensor:
        """Partial sums `[tiles, children, sources, parents, tokens]` of `[in_features, tokens]`."""
        gathered = self.gather(rows)
        found = [multiply(run.matrices, run.rows(gathered)) for run in self.runs]
        sums: Tensor = joined(found).unflatten(2, (self.sources, self.part.parents))
        return sums

    def dense(self, in_features: int) -> Tensor:
        """The matrices with zeros filled in and coupled, as `sums` with inputs for tokens.

        Args:
            in_features: Inputs of the block.
        """
        index = self.index.long().view(self.part.count, -1, 1)
        filled = []
        for run in self.runs:
            columns = run.rows(index).mT.expand_as(run.matrices)
            zeros = run.matrices.new_zeros(*run.matrices.shape[:3], in_features)
            filled.append(zeros.scatter(3, columns, run.matrices))
        sums: Tensor = joined(filled).unflatten(2, (self.sources, self.part.parents))
        return self.couple(sums).expand_as(sums)

    def couple(self, sums: Tensor) -> Tensor:
        """Coupled partial sums; only one child if the children are equal."""
        mu = self.coupling
        return couple(sums, mu.to(sums.dtype) if isinstance(mu, Tensor) else mu)

    def add_bias(self, sums: Tensor, reuse: bool = False) -> Tensor:
        """Adds the biases.

        Args:
            sums: Coupled partial sums.
            reuse: Whether they may be overwritten.
        """
        if self.bias is None:
            return sums
        bias = self.bias.to(sums.dtype)
        if reuse and bias.shape[1] <= sums.shape[1]:
            return sums.add_(bias)
        return sums + bias  # equal children may differ in their biases


class DownPart:
    """What a down projection holds for a part, as views, or the gradients of that.

    Args:
        spec: The block.
        part: Which children.
        outputs: Index of the projection `[all tiles, outputs]`, or `None`: all, in order.
        weight: Its weights, flat, or `None` where their gradient is not wanted.

    Attributes:
        index: Outputs that the children write `[tiles, outputs]`, or `None`.
        runs: Its matrices.
    """

    def __init__(
        self, spec: BlockSpec, part: Part, outputs: Tensor | None, weight: Tensor | None
    ) -> None:
        self.part = part
        self.replicated = spec.fan_out == "replicate"
        self.runs = [] if weight is None else list(down_matrices(spec, part, weight))
        self.index: Tensor | None = None
        if outputs is not None:
            tiles = slice(part.first, part.first + part.count)
            own = outputs[tiles] if self.replicated else part.index(outputs, spec.child_outputs)
            self.index = own.int()

    def dense(self, out_features: int) -> Tensor:
        """The matrices with zeros filled in, `[tiles, children, outputs, parents]`; with a
        replicated fan-out `[tiles, 1, outputs, children * parents]`.

        Args:
            out_features: Outputs of the block.
        """
        if self.index is None:
            return self.runs[0].matrices
        index = self.index.long().unsqueeze(2)
        filled = []
        for run in self.runs:
            zeros = run.matrices.new_zeros(
                *run.matrices.shape[:2], out_features, run.matrices.shape[3]
            )
            filled.append(zeros.scatter(2, run.rows(index).expand_as(run.matrices), run.matrices))
        return joined(filled)

    def side_by_side(self, hidden: Tensor) -> Tensor:
        """Hidden activations `[tiles, children, parents, tokens]` as the matrices meet them.

        One child may stand for all. With a replicated fan-out the result is
        `[tiles, 1, children * parents, tokens]`.
        """
        hidden = hidden.expand(-1, self.part.children, -1, -1)
        return hidden.flatten(1, 2).unsqueeze(1) if self.replicated else hidden

    def write_(self, total: Tensor, met: Tensor) -> None:
        """Adds to the outputs.

        Args:
            total: `[out_features, tokens]`.
            met: Hidden activations, see `side_by_side`.
        """
        rows = joined([multiply(r.matrices, r.hidden(met)).flatten(1, 2) for r in self.runs])
        if self.index is None:
            total.add_(rows[0] if len(rows) == 1 else rows.sum(0))
        elif not rows.is_cpu:
            for own, wrote in zip(self.index, rows, strict=True):  # no atomic additions
                total.index_add_(0, own, wrote)
        elif not torch.compiler.is_compiling() and rows.shape[2] == 1:
            # Rows of one are slow.
            total.squeeze(1).index_add_(0, self.index.flatten(), rows.flatten())
        else:
            total.index_add_(0, self.index.flatten(), rows.flatten(0, 1))

    def gather(self, rows: Tensor) -> Tensor:
        """What the children write, `[tiles, outputs, tokens]`, of `[out_features, tokens]`."""
        if self.index is None:
            return rows.unsqueeze(0).expand(self.part.count, -1, -1)
        found: Tensor = rows.index_select(0, self.index.flatten()).unflatten(0, self.index.shape)
        return found


def _per_parent(spec: BlockSpec, part: Part, values: Tensor) -> Tensor:
    """Numbers per parent, flat, for the tiles of a part: `[tiles, 1, sources, parents, 1]`."""
    own = values.view(spec.sources_per_up, 1, -1)[..., part.rows]
    apart: Tensor = own.unflatten(2, (part.count, part.parents))
    return apart.permute(2, 1, 0, 3).unsqueeze(-1)


def _per_child(spec: BlockSpec, part: Part, values: Tensor) -> Tensor:
    """Numbers per child, flat, for a part: `[tiles, children, sources, parents, 1]`."""
    rows = slice(spec.alpha * part.rows.start, spec.alpha * part.rows.stop)
    tiles = values.view(spec.sources_per_up, -1)[:, rows]
    apart: Tensor = tiles.unflatten(1, (part.count, spec.alpha, part.parents))
    return apart.narrow(2, part.child, part.children).permute(1, 2, 0, 3).unsqueeze(-1)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors `[tiles, n, ...]`, one after the other along `n`."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


def project_up(spec: BlockSpec, ups: Sequence[UpPart], x: Tensor) -> Tensor:
    """The up projection of a block.

    Args:
        spec: The block.
        ups: Its parts, as `whole_parts` has them.
        x: `[..., in_features]`.

    Returns:
        `[..., sources * hidden]`, rows in the order of the parent's sources.
    """
    rows = x.reshape(-1, spec.in_features).t()
    made = []
    for up in ups:
        sums = up.sums(rows)
        made.append(up.add_bias(up.couple(sums)).expand_as(sums))
    # [tokens, sources, hidden] or, interleaved, [tokens, hidden, sources]
    if spec.fused == "interleaved":
        flat = [pre.permute(4, 0, 1, 3, 2).flatten(1, 3) for pre in made]
    else:
        flat = [pre.permute(4, 2, 0, 1, 3).flatten(2) for pre in made]
    axis = 1 if spec.fused == "interleaved" else 2
    hidden = (flat[0] if len(flat) == 1 else torch.cat(flat, axis)).flatten(1)
    # Models may take a view of it, as they can of what nn.Linear returns.
    return hidden.contiguous().view(*x.shape[:-1], spec.sources_per_up * spec.hidden)


def project_down(
    spec: BlockSpec, downs: Sequence[DownPart], hidden: Tensor, bias: Tensor | None
) -> Tensor:
    """The down projection of a block.

    Args:
        spec: The block.
        downs: Its parts, as `whole_parts` has them.
        hidden: `[..., hidden]`.
        bias: `[out_features]` or `None`.

    Returns:
        `[..., out_features]`.
    """
    columns = hidden.reshape(-1, spec.hidden).t()
    total = _zeros(spec, downs[0], columns)
    for down in downs:
        rows = down.part.rows
        own = columns[spec.alpha * rows.start : spec.alpha * rows.stop]
        own = own.unflatten(0, (down.part.count, spec.alpha, down.part.parents))
        down.write_(total, down.side_by_side(own))
    result = total.t().contiguous().view(*hidden.shape[:-1], spec.out_features)
    return result if bias is None else result + bias.to(result.dtype)


def _zeros(spec: BlockSpec, down: DownPart, columns: Tensor) -> Tensor:
    """Outputs `[out_features, tokens]` to add to, of the dtype that products have."""
    kind = columns.device.type
    dtype = down.runs[0].matrices.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return columns.new_zeros(spec.out_features, columns.shape[1], dtype=dtype)
