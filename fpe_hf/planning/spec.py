"""`BlockSpec`: everything about a widened block but its numbers. It is what a checkpoint's config
holds, and enough to rebuild the block's modules empty."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..config import BIASES, FAN_OUTS, MAX_ALPHA, MIN_BUDGET
from ..errors import CheckpointError, did_you_mean
from .budget import affordable

FUSED = (None, "halves", "interleaved")
ASSIGNMENTS = ("hash", "table", "codes", "kept")
OPEN = "open"
INDEPENDENT = "independent"


@dataclass(frozen=True)
class BlockSpec:
    """A widened block.

    Hidden neurons of the widened block are ordered by tile, then child, then parent; the `element`
    layout has one tile (per expert).

    The experts of a mixture may be fused: a parameter stacks their matrices. They form one block
    whose parents are those of all experts, one expert after the other. No tile spans two experts,
    every expert keeps its own budget, and every count below that is not a shape is a total.

    Attributes:
        name: Dotted name of the block.
        ups: Names of the modules (of the parameters, if they stack experts) feeding the hidden
            neurons: one, or gate and up.
        down: Name of the down projection.
        in_features: Inputs `d`.
        parents: Parent neurons `h`.
        out_features: Outputs `o`.
        fused: `None`, or how one up module holds gate and up: `"halves"`, `"interleaved"`.
        up_biases: Whether each up module has a bias.
        down_bias: Whether the down projection has a bias.
        alpha: Children per parent.
        split: Name of the split that divided the inputs.
        fan_out: `"replicate"`, `"partition"`, or `"independent"` (children that were trained while
            the budget was open keep whatever outgoing weights are left to them).
        layout: `"element"` or `"block"`; `"open"` while the budget is not closed: dense matrices
            and masks of what is still alive.
        coupling: Fixed coupling, or the value a learned one started at.
        annealed_from: The fixed coupling that the block was widened with, if training has annealed
            it since; else 0.
        learn_coupling: Whether there is a trainable coupling per parent and up-type matrix.
        bias: `"shared"` or `"child"`.
        seed: The block's own seed.
        parent_nonzeros: Non-zero weights of the parent, plus its biases.
        assignment: `element`: how the division of inputs is kept: `"hash"` (a function of the
            seed), `"table"` (one row for all parents), `"codes"` (entry by entry) or `"kept"`
            (kept entry by kept entry).
        up_values: `element`: number of weights kept by each up module.
        down_values: `element`: number of weights kept by the down projection.
        up_pruned: `element`: whether each up module has a mask of kept entries.
        down_pruned: `element`: the same for the down projection.
        tile_size: `block`: parents per tile (the last tile may be smaller).
        child_inputs: `block`: inputs read by each child, the same in every tile.
        child_outputs: `block`: outputs written by each child, the same in every tile.
        final_weights: `open`: how many weights each expert may end with.
        budget: Share of `parent_nonzeros` that the block may hold (an open one: end with).
        experts: Experts that `ups` and `down` stack; 1 for the projections of an ordinary block.
        transposed: Experts: whether each parameter, `ups` then `down`, holds `[in, out]` matrices.
        bias_names: Experts: name of the bias parameter that goes with each, or `None`.
        place: If names begin otherwise in the model than in the one that was widened, one being a
            part of the other: with what, there and here.
    """

    name: str
    ups: tuple[str, ...]
    down: str
    in_features: int
    parents: int
    out_features: int
    fused: str | None
    up_biases: tuple[bool, ...]
    down_bias: bool
    alpha: int
    split: str
    fan_out: str
    layout: str
    coupling: float
    learn_coupling: bool
    bias: str
    seed: int
    parent_nonzeros: int
    assignment: str = "hash"
    up_values: tuple[int, ...] = ()
    down_values: int = 0
    up_pruned: tuple[bool, ...] = ()
    down_pruned: bool = False
    tile_size: int = 0
    child_inputs: tuple[int, ...] = ()
    child_outputs: tuple[int, ...] = ()
    final_weights: tuple[int, ...] = ()
    budget: float = 1.0
    annealed_from: float = 0.0
    experts: int = 1
    transposed: tuple[bool, ...] = ()
    bias_names: tuple[str | None, ...] = ()
    place: tuple[str, ...] = ()

    def here(self, name: str) -> str:
        """What a name in the block is in the model that it is saved with."""
        old, new = self.place or ("", "")
        return new + name.removeprefix(old) if name.startswith(old) else name

    @property
    def as_widened(self) -> BlockSpec:
        """The block as it was before training annealed its coupling."""
        if not self.annealed_from:
            return self
        return dataclasses.replace(self, coupling=self.annealed_from, annealed_from=0.0)

    @property
    def sources_per_up(self) -> int:
        """Up-type matrices in one up module: 2 if fused."""
        return 1 if self.fused is None else 2

    @property
    def sources(self) -> int:
        """Up-type matrices in the block: 2 if gated."""
        return self.sources_per_up * len(self.ups)

    @property
    def hidden(self) -> int:
        """Hidden neurons of the widened block (of one expert), `alpha * parents`."""
        return self.alpha * self.parents

    @property
    def all_parents(self) -> int:
        """Parent neurons of all experts."""
        return self.experts * self.parents

    @property
    def tile_count(self) -> int:
        """Number of tiles, of all experts."""
        size = self.tile_size if self.layout == "block" else self.parents
        return self.experts * -(-self.parents // size)

    @cached_property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """First and last-plus-one parent of every tile, counted through all experts."""
        size = self.tile_size if self.layout == "block" else self.parents
        return tuple(
            (first + start, first + min(start + size, self.parents))
            for first in range(0, self.all_parents, self.parents)
            for start in range(0, self.parents, size)
        )

    @property
    def limit(self) -> int:
        """The budget: how many non-zeros the block may hold (an open one: end with)."""
        return affordable(self.budget, self.parent_nonzeros)

    @property
    def parent_numbers(self) -> int:
        """Numbers the dense parent stores, zero or not."""
        weights = self.parents * (self.sources * self.in_features + self.out_features)
        biases = sum(self.up_biases) * self.sources_per_up * self.parents
        biases += self.out_features if self.down_bias else 0
        return self.experts * (weights + biases)

    @property
    def up_weights(self) -> tuple[int, ...]:
        """Numbers in the `weight` of every up module."""
        if self.layout == "element":
            return self.up_values
        if self.layout == OPEN:
            one = self.sources_per_up * self.alpha * self.all_parents * self.in_features
            return (one,) * len(self.ups)
        return (self.sources_per_up * self.all_parents * sum(self.child_inputs),) * len(self.ups)

    @property
    def down_weights(self) -> int:
        """Numbers in the `weight` of the down projection."""
        if self.layout == "element":
            return self.down_values
        if self.layout == OPEN:
            return self.alpha * self.all_parents * self.out_features
        return self.all_parents * sum(self.child_outputs)

    @property
    def bias_numbers(self) -> int:
        """Numbers in all biases of the widened block."""
        per_source = self.hidden if self.bias == "child" else self.parents
        ups = sum(self.up_biases) * self.sources_per_up * per_source
        return self.experts * (ups + (self.out_features if self.down_bias else 0))

    @property
    def coupling_numbers(self) -> int:
        """Trainable coupling scalars."""
        return self.sources * self.all_parents if self.learn_coupling else 0

    @property
    def nonzeros(self) -> int:
        """All trainable numbers of the widened block; never above `limit` unless it is open."""
        weights = sum(self.up_weights) + self.down_weights
        return weights + self.bias_numbers + self.coupling_numbers

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, without those that this kind of block does not use."""
        fields = dataclasses.asdict(self)
        rare = (self.experts > 1, self.place, self.budget < 1.0, self.annealed_from)
        for name in _unused(self.layout, *map(bool, rare)):
            del fields[name]
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> BlockSpec:
        """Reads what `to_dict` wrote, trusting nothing.

        Raises:
            CheckpointError: A field is missing, unknown, mistyped, out of range, or the fields
                contradict each other.
        """
        if not isinstance(fields, Mapping):
            raise CheckpointError(f"A block of the FPE config must be an object, not {fields!r}.")
        where = f"block {fields.get('name')!r} of the FPE config"
        layout = fields.get("layout")
        if layout not in tuple(_UNUSED):
            raise CheckpointError(f"{where}: layout={layout!r}; accepted: {', '.join(_UNUSED)}.")
        expected = {
            item.name: item
            for item in dataclasses.fields(cls)
            if item.name not in _unused(str(layout), *(name in fields for name in _RARE))
        }
        for name in fields:
            if name not in expected:
                raise CheckpointError(
                    f"{where}: unknown field {name!r}.{did_you_mean(str(name), expected)}"
                )
        values: dict[str, Any] = {}
        for name, item in expected.items():
            if name not in fields:
                raise CheckpointError(f"{where}: field {name!r} is missing.")
            values[name] = _read(where, name, str(item.type), fields[name])
        spec = cls(**values)
        spec._check(where)
        return spec

    def _check(self, where: str) -> None:
        def require(holds: bool, message: str) -> None:
            if not holds:
                raise CheckpointError(f"{where}: {message}")

        for size in ("in_features", "parents", "out_features"):
            count = getattr(self, size)
            require(0 < count < 2**63, f"{size}={count} must be positive and below 2**63.")
        require(MIN_BUDGET <= self.budget <= 1.0, f"budget={self.budget} is out of range.")
        least = 1 if self.budget < 1.0 else 2
        require(
            least <= self.alpha <= MAX_ALPHA, f"alpha={self.alpha} must be {least} to {MAX_ALPHA}."
        )
        fan_outs = (*FAN_OUTS, INDEPENDENT) if self.layout == "element" else FAN_OUTS
        require(self.fan_out in fan_outs, f"fan_out={self.fan_out!r}; accepted: {fan_outs}.")
        require(self.bias in BIASES, f"bias={self.bias!r}; accepted: {BIASES}.")
        require(self.fused in FUSED, f"fused={self.fused!r}; accepted: {FUSED}.")
        require(len(self.ups) in (1, 2), f"ups={self.ups} must name one or two modules.")
        require(self.fused is None or len(self.ups) == 1, "a fused block has one up module.")
        require(len(self.up_biases) == len(self.ups), "up_biases must have an entry per up module.")
        require(0.0 <= self.coupling <= 1.0, f"coupling={self.coupling} must be 0.0 to 1.0.")
        if self.annealed_from:
            fixed = not self.learn_coupling and 0.0 < self.annealed_from <= 1.0
            require(fixed, f"annealed_from={self.annealed_from} is no coupling that was fixed.")
        require(0 <= self.seed < 2**63, f"seed={self.seed} is out of range.")
        require(0 < self.experts < 2**63, f"experts={self.experts} must be positive.")
        require(len(self.place) in (0, 2), f"place={self.place} must be two beginnings of names.")
        if self.experts > 1:
            self._check_experts(require)
        if self.layout == "element":
            entries = self.sources_per_up * self.all_parents * self.in_features
            copies = 1 if self.fan_out == "partition" else self.alpha
            outgoing = copies * self.all_parents * self.out_features
            require(
                self.assignment in ASSIGNMENTS,
                f"assignment={self.assignment!r}; accepted: {ASSIGNMENTS}.",
            )
            require(
                len(self.up_values) == len(self.up_pruned) == len(self.ups),
                "up_values and up_pruned must have an entry per up module.",
            )
            for count, pruned in zip(self.up_values, self.up_pruned, strict=True):
                require(
                    0 <= count <= entries if pruned else count == entries,
                    f"up_values={self.up_values} does not fit {entries} entries.",
                )
            require(
                0 <= self.down_values <= outgoing
                if self.down_pruned
                else self.down_values == outgoing,
                f"down_values={self.down_values} does not fit {outgoing} entries.",
            )
        elif self.layout == OPEN:
            self._check_open(require)
        else:
            require(
                1 <= self.tile_size <= self.parents,
                f"tile_size={self.tile_size} must be 1 to {self.parents}.",
            )
            for name, counts, limit in (
                ("child_inputs", self.child_inputs, self.in_features),
                ("child_outputs", self.child_outputs, self.out_features),
            ):
                require(len(counts) == self.alpha, f"{name} must have {self.alpha} entries.")
                shared = name == "child_outputs" and self.fan_out == "replicate"
                total = max(counts) if shared else sum(counts)
                require(
                    min(counts) >= 0 and total <= limit,
                    f"{name}={counts} does not fit {limit}.",
                )
                require(total > 0, f"{name}={counts} must not be nothing.")
                require(not shared or len(set(counts)) == 1, f"{name}={counts} must be equal.")
        require(
            self.parent_nonzeros <= self.parent_numbers,
            f"parent_nonzeros={self.parent_nonzeros}, but a parent of this shape has only "
            f"{self.parent_numbers} numbers.",
        )
        require(
            self.layout == OPEN or self.nonzeros <= self.limit,
            f"{self.nonzeros} non-zeros exceed the budget of {self.limit}: budget={self.budget}, "
            f"parent_nonzeros={self.parent_nonzeros}.",
        )

    def _check_open(self, require: Callable[[bool, str], None]) -> None:
        uncoupled = not (self.coupling or self.learn_coupling or self.annealed_from)
        require(uncoupled, "an open block has no coupling.")
        require(
            len(self.final_weights) == self.experts and min(self.final_weights) > 0,
            f"final_weights={self.final_weights} must be positive, one per expert.",
        )
        final = sum(self.final_weights) + self.bias_numbers
        require(
            final <= self.limit,
            f"final_weights={self.final_weights} exceed the budget of {self.limit}.",
        )

    def _check_experts(self, require: Callable[[bool, str], None]) -> None:
        biased = (*self.up_biases, self.down_bias)
        require(
            len(self.transposed) == len(biased),
            "transposed must have an entry per parameter.",
        )
        require(
            tuple(name is not None for name in self.bias_names) == biased,
            f"bias_names={self.bias_names} contradicts up_biases and down_bias.",
        )
        names = [*self.ups, self.down, *filter(None, self.bias_names)]
        require(len(set(names)) == len(names), f"the parameters {names} must differ.")


_ELEMENT_FIELDS = ("assignment", "up_values", "down_values", "up_pruned", "down_pruned")
_BLOCK_FIELDS = ("tile_size", "child_inputs", "child_outputs")
_OPEN_FIELDS = ("final_weights",)
_EXPERT_FIELDS = ("experts", "transposed", "bias_names")
_UNUSED = {
    "element": _BLOCK_FIELDS + _OPEN_FIELDS,
    "block": _ELEMENT_FIELDS + _OPEN_FIELDS,
    OPEN: _ELEMENT_FIELDS + _BLOCK_FIELDS,
}
_RARE = {
    "experts": _EXPERT_FIELDS,
    "place": ("place",),
    "budget": ("budget",),
    "annealed_from": ("annealed_from",),
}
_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool, "float": float}


def _unused(layout: str, *rare: bool) -> tuple[str, ...]:
    """The fields that say nothing about a block, given which of the rare ones are used."""
    unused = (names for names, used in zip(_RARE.values(), rare, strict=True) if not used)
    return _UNUSED[layout] + tuple(itertools.chain.from_iterable(unused))


def _read(where: str, name: str, kind: str, value: object) -> Any:
    """Checks a JSON value against the annotation of a field, and turns lists into tuples."""
    if kind.startswith("tuple["):
        item = kind.removeprefix("tuple[").split(",")[0]
        if not isinstance(value, (list, tuple)):
            raise CheckpointError(f"{where}: {name}={value!r} must be a list of {item}.")
        return tuple(_read(where, name, item, entry) for entry in value)
    if kind == "str | None":
        if value is None:
            return None
        kind = "str"
    if kind == "float" and type(value) is int:
        value = float(value)
    if type(value) is not _TYPES[kind]:
        raise CheckpointError(f"{where}: {name}={value!r} must be {kind}.")
    return value
