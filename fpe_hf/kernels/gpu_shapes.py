"""Where the weights of a projection lie: all that the GPU kernels know of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..planning.spec import BlockSpec

MAX_CHILDREN = 16
"""The kernels unroll loops over children, so they take no more than this many."""


@dataclass(frozen=True)
class BlockShape:
    """One projection in the `block` layout, up or down.

    Both have a *wide* side, the hidden neurons, and an *indexed* side, of which every block sees
    some columns: the inputs of an up projection, the outputs of a down projection. A block belongs
    to a tile and a child and is a matrix between `sources * parents of the tile` wide columns and
    `counts[child]` indexed ones.

    A replicated fan-out has one matrix per tile. It is a shape with one child, whose parents are
    the tile's hidden neurons.

    Attributes:
        features: Columns of the indexed side.
        parents: Parents of all tiles.
        tile_size: Parents of a tile; the last may have fewer.
        counts: Indexed columns of every child, the same in every tile.
        sources: Up-type matrices, 2 if gate and up are fused.
        interleaved: Whether fused matrices alternate on the wide side, instead of coming in halves.
        up: Whether blocks are stored as `[wide, indexed]`, as up projections are; else
            `[indexed, wide]`.
    """

    features: int
    parents: int
    tile_size: int
    counts: tuple[int, ...]
    sources: int = 1
    interleaved: bool = False
    up: bool = True

    @classmethod
    def of_up(cls, spec: BlockSpec) -> BlockShape:
        """The up projections of a block that does not stack experts."""
        return cls(
            features=spec.in_features,
            parents=spec.parents,
            tile_size=spec.tile_size,
            counts=spec.child_inputs,
            sources=spec.sources_per_up,
            interleaved=spec.fused == "interleaved",
        )

    @classmethod
    def of_down(cls, spec: BlockSpec) -> BlockShape:
        """The down projection of a block."""
        replicated = spec.fan_out == "replicate"
        width = spec.alpha if replicated else 1
        return cls(
            features=spec.out_features,
            parents=width * spec.parents,
            tile_size=width * spec.tile_size,
            counts=spec.child_outputs[:1] if replicated else spec.child_outputs,
            up=False,
        )

    @property
    def alpha(self) -> int:
        """Children."""
        return len(self.counts)

    @property
    def indexed(self) -> int:
        """Indexed columns of a tile."""
        return sum(self.counts)

    @property
    def starts(self) -> tuple[int, ...]:
        """First indexed column of every child within its tile."""
        return (0, *accumulate(self.counts))[:-1]

    @property
    def wide(self) -> int:
        """Columns of the wide side."""
        return self.sources * self.alpha * self.parents

    @property
    def weights(self) -> int:
        """Numbers of the projection."""
        return self.sources * self.parents * self.indexed

    @property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """First and last-plus-one parent of every tile."""
        starts = range(0, self.parents, self.tile_size)
        return tuple((start, min(start + self.tile_size, self.parents)) for start in starts)

    def to_list(self) -> list[int]:
        """As one list of integers, which is what a registered operator can take."""
        return [
            self.features,
            self.parents,
            self.tile_size,
            self.sources,
            int(self.interleaved),
            int(self.up),
            *self.counts,
        ]

    @classmethod
    def from_list(cls, numbers: Sequence[int]) -> BlockShape:
        """What `to_list` wrote."""
        features, parents, tile_size, sources, interleaved, up, *counts = numbers
        return cls(
            features=features,
            parents=parents,
            tile_size=tile_size,
            counts=tuple(counts),
            sources=sources,
            interleaved=bool(interleaved),
            up=bool(up),
        )


@dataclass(frozen=True)
class ElementShape:
    """One projection in the `element` layout, up or down.

    Attributes:
        rows: Rows of the parent's matrix: `sources * parents`, or outputs.
        columns: Its columns: inputs, or parents.
        alpha: Children.
        bits: Bits of a child's number in the packed assignment; 0 if there is none, because every
            child has a copy of every weight.
        code_rows: Rows of the assignment: 1 if all rows share one, `parents`, or outputs.
        sources: Up-type matrices, 2 if gate and up are fused.
        interleaved: Whether fused matrices alternate in the output, instead of coming in halves.
        up: Whether children are outputs (an up projection) or inputs (a down projection).
    """

    rows: int
    columns: int
    alpha: int
    bits: int
    code_rows: int
    sources: int = 1
    interleaved: bool = False
    up: bool = True

    @classmethod
    def of_up(cls, spec: BlockSpec, bits: int) -> ElementShape:
        """The up projections of a block, whose assignment takes `bits` per entry."""
        return cls(
            rows=spec.sources_per_up * spec.parents,
            columns=spec.in_features,
            alpha=spec.alpha,
            bits=bits,
            code_rows=1 if spec.assignment == "table" else spec.parents,
            sources=spec.sources_per_up,
            interleaved=spec.fused == "interleaved",
        )

    @classmethod
    def of_down(cls, spec: BlockSpec, bits: int) -> ElementShape:
        """The down projection of a block, whose assignment takes `bits` per entry."""
        return cls(
            rows=spec.out_features,
            columns=spec.parents,
            alpha=spec.alpha,
            bits=bits if spec.fan_out == "partition" else 0,
            code_rows=spec.out_features,
            up=False,
        )

    @property
    def outputs(self) -> int:
        """Outputs of the projection."""
        return self.rows * self.alpha if self.up else self.rows

    def to_list(self) -> list[int]:
        """As one list of integers, which is what a registered operator can take."""
        return [
            self.rows,
            self.columns,
            self.alpha,
            self.bits,
            self.code_rows,
            self.sources,
            int(self.interleaved),
            int(self.up),
        ]

    @classmethod
    def from_list(cls, numbers: Sequence[int]) -> ElementShape:
        """What `to_list` wrote."""
        rows, columns, alpha, bits, code_rows, sources, interleaved, up = numbers
        return cls(rows, columns, alpha, bits, code_rows, sources, bool(interleaved), bool(up))
