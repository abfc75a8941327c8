"""What discovery reports: MLP blocks, and the near-misses with the reason they were refused."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from ..markup import html_table, text_table


@dataclass(frozen=True)
class MLPBlock:
    """One MLP block: `down(act(up(x)))`, or `down(act(gate(x)) * up(x))`.

    Or one for each expert of a mixture, if parameters stack the experts' matrices. Then `up`,
    `gate` and `down` name those parameters, and the shapes are those of a single expert.

    Attributes:
        name: Dotted name of the innermost module that holds all the projections.
        up: Dotted name of the up projection (of the fused gate-up projection if `fused`).
        gate: Dotted name of the gate projection, or `None` (not gated, or fused).
        down: Dotted name of the down projection.
        activation: What lies between, as seen in the graph, e.g. `"gelu"`.
        in_features: Inputs `d` of the up projection.
        parents: Hidden neurons `h` (rows of `up`; half of them if `fused`).
        out_features: Outputs `o` of the down projection.
        fused: `None`, `"halves"` (the rows of gate and up lie one after the other) or
            `"interleaved"` (they alternate).
        shared: Further dotted names under which the same projections are reachable.
        calls: How often the block ran in the traced forward pass.
        experts: Experts that the parameters stack; 1 for a block of linear modules.
        transposed: Experts: whether each parameter, `ups` then `down`, holds `[in, out]` matrices.
        bias_names: Experts: dotted name of the bias parameter that goes with each, or `None`.
    """

    name: str
    up: str
    down: str
    activation: str
    in_features: int
    parents: int
    out_features: int
    gate: str | None = None
    fused: str | None = None
    shared: tuple[str, ...] = ()
    calls: int = 1
    experts: int = 1
    transposed: tuple[bool, ...] = ()
    bias_names: tuple[str | None, ...] = ()

    @property
    def ups(self) -> tuple[str, ...]:
        """Names of the modules that feed the hidden neurons, gate first."""
        return (self.up,) if self.gate is None else (self.gate, self.up)

    @property
    def sources(self) -> int:
        """Up-type weight matrices per hidden neuron: 2 if gated (fused or not), else 1."""
        return 2 if self.gate is not None or self.fused is not None else 1

    @property
    def kind(self) -> str:
        """`"plain"`, `"gated"`, `"fused"` or `"experts"`."""
        if self.experts > 1:
            return "experts"
        return "fused" if self.fused else ("gated" if self.gate else "plain")

    def matches(self, word: str) -> bool:
        """Whether a word of `targets`/`exclude` (see `FPEConfig`) means this block."""
        return any(matches_name(name, word) for name in (self.name, *self.ups, self.down))


def matches_name(name: str, word: str) -> bool:
    """Whether `word` equals `name`, is a suffix or prefix of it by whole parts, or its pattern."""
    return (
        name == word
        or name.endswith("." + word)
        or name.startswith(word + ".")
        or fnmatch.fnmatchcase(name, word)
    )


@dataclass(frozen=True)
class NearMiss:
    """Something that looks like an MLP block but is not widened.

    Attributes:
        up: Dotted names of the linear modules that feed it, or of the part that no inputs reached.
        down: Dotted name of the linear module that reads it, or `None`.
        reason: Why it was refused, in words.
        block: The block, if it may still be widened by naming it in `targets`.
    """

    up: tuple[str, ...]
    down: str | None
    reason: str
    block: MLPBlock | None = None


class MLPBlocks(list[MLPBlock]):
    """The blocks `widen` would take, in the order they run, plus what it would not take and why.

    A list that prints as a table, in notebooks too.

    Attributes:
        near_misses: Refused candidates with reasons. Those with a `block` are widened on request.
        runs: Names of the projections that each run of the model, or of a part of it, called.
    """

    def __init__(
        self, blocks: Iterable[MLPBlock] = (), near_misses: Iterable[NearMiss] = ()
    ) -> None:
        super().__init__(blocks)
        self.near_misses: list[NearMiss] = list(near_misses)
        self.runs: list[frozenset[str]] = []

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table of blocks."""
        header = ["block", "kind", "activation", "up", "down", "in", "hidden", "out"]
        cells = []
        for block in self:
            names = [name.removeprefix(f"{block.name}.") for name in (*block.ups, block.down)]
            sizes = (block.in_features, block.parents, block.out_features)
            kinds = (block.name, block.kind, block.activation)
            cells.append([*kinds, " + ".join(names[:-1]), names[-1], *map(str, sizes)])
        return header, cells

    def refusals(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table of near-misses."""
        cells = [[" + ".join(miss.up), miss.down or "", miss.reason] for miss in self.near_misses]
        return ["left alone: up", "down", "reason"], cells

    def __str__(self) -> str:
        tables = [text_table(*self.rows(), texts=5)]
        if self.near_misses:
            tables.append(text_table(*self.refusals(), texts=3))
        return "\n\n".join(tables)

    def _repr_html_(self) -> str:
        """What notebooks show."""
        tables = [html_table(*self.rows(), texts=5)]
        if self.near_misses:
            tables.append(html_table(*self.refusals(), texts=3))
        return "\n".join(tables)

    @property
    def with_requested(self) -> list[MLPBlock]:
        """The blocks, and those that would be widened on request."""
        return [*self, *(miss.block for miss in self.near_misses if miss.block is not None)]
