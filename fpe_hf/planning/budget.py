"""The arithmetic of the budget: what a widened block may hold, and how `block` spends it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from ..config import FPEConfig


def affordable(budget: float, nonzeros: int) -> int:
    """How many of some non-zeros a budget pays for.

    It is taken as it is written, 0.7 as seven tenths, so that what experts may hold never adds up
    to more than their block may.
    """
    return int(Fraction(repr(budget)) * nonzeros)


def extra_numbers(config: FPEConfig, sources: int, biased: int, parents: int) -> int:
    """Numbers a widened block holds beyond its weights and its parent's biases.

    Args:
        config: The block's configuration.
        sources: Up-type matrices (2 if gated).
        biased: How many of them have a bias.
        parents: Parent neurons.

    Returns:
        `(alpha - 1) * biased * parents` for one bias per child, plus `sources * parents` for
        learned coupling. Pruning pays for them.
    """
    biases = (config.alpha - 1) * biased * parents if config.bias == "child" else 0
    return biases + (sources * parents if config.learn_coupling else 0)


@dataclass(frozen=True)
class TileColumns:
    """What a tile of the `block` layout may hold, in columns of one number per parent.

    An input of a child costs `sources` columns, an output of a child costs one. The parent has
    `sources * inputs + outputs` columns per tile.

    Attributes:
        sources: Up-type matrices.
        inputs: Inputs `d`.
        outputs: Outputs `o`.
        alpha: Children per parent.
        extra: Columns taken by biases per child and learned coupling, or that the budget lacks.
    """

    sources: int
    inputs: int
    outputs: int
    alpha: int
    extra: int

    @property
    def available(self) -> int:
        """Columns left for weights."""
        return self.sources * self.inputs + self.outputs - self.extra

    def inputs_beside(self, outputs_per_child: int, copies: int) -> int:
        """Inputs that can be kept in all beside `copies * outputs_per_child` output columns."""
        left = (self.available - copies * outputs_per_child) // self.sources
        return max(0, min(self.inputs, left))

    @property
    def keeps_fan_out(self) -> bool:
        """Whether the whole replicated fan-out fits while at least half of the inputs stay."""
        return 2 * self.inputs_beside(self.outputs, self.alpha) >= self.inputs


def balanced(total: int, groups: int) -> tuple[int, ...]:
    """Sizes of `groups` groups of `total` items that differ by at most one.

    Group `c` holds the ranks `q` with `q * groups // total == c`, as in the random split.
    """
    bounds = [-(-group * total // groups) for group in range(groups + 1)]
    return tuple(stop - start for start, stop in pairwise(bounds))
