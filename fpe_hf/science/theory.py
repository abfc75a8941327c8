"""How often a random split makes clauses collide, and how many it keeps whole.

A parent's `n` inputs are divided among `alpha` children. A clause of `k` variables is whole in a
child that reads all of them. Two disjoint clauses *collide* at a parent if both are whole in the
same child; a clause is *covered* if it is whole in some child of some of the `h` parents.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import torch

from ..errors import ConfigError
from ..metrics.clauses import clause_collisions, clause_coverage
from ..planning.budget import balanced
from ..splits import hashed_children


def whole_probability(inputs: int, variables: int, alpha: int) -> float:
    """Probability that some child reads all of a set of inputs, exactly.

    `sum_c C(n - v, s_c - v) / C(n, s_c) = sum_c prod_{i<v} (s_c - i) / (n - i)`, with `s_c` the
    number of inputs of child `c`: the split gives each child a uniformly drawn subset.

    Args:
        inputs: `n`.
        variables: Size of the set, `v`.
        alpha: Children.

    Raises:
        ConfigError: A number is out of range.
    """
    if not 1 <= variables <= inputs or alpha < 1:
        raise ConfigError(
            f"inputs={inputs}, variables={variables}, alpha={alpha}: give 1 or more of each, and "
            "no more variables than inputs."
        )
    return sum(
        prod((size - i) / (inputs - i) for i in range(variables))
        for size in balanced(inputs, alpha)
        if size >= variables
    )


def collision_probability(inputs: int, literals: int, alpha: int) -> float:
    """Probability that two disjoint clauses collide at a parent, exactly: both are whole in the
    same child if and only if their `2 k` variables are."""
    return whole_probability(inputs, 2 * literals, alpha)


def collision_approximation(literals: int, alpha: int) -> float:
    """The paper's `alpha^-(2k-1)` (arXiv 2510.04500): the limit of many inputs."""
    return float(alpha) ** -(2 * literals - 1)


def expected_coverage(inputs: int, literals: int, parents: int, alpha: int) -> float:
    """Expected share of covered clauses, exactly: `1 - (1 - p)^h`, with `p` the probability that a
    clause is whole at one parent. Parents are divided independently, and clauses are alike, so it
    depends neither on their number nor on whether they overlap."""
    return 1 - (1 - whole_probability(inputs, literals, alpha)) ** parents


@dataclass(frozen=True)
class Estimate:
    """A mean over independent draws, and its standard error."""

    mean: float
    error: float


def simulate(
    inputs: int,
    clauses: int,
    literals: int,
    parents: int,
    alpha: int,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """Monte Carlo: draws random splits and counts.

    Returns:
        Share of colliding pairs of disjoint clauses per parent, and share of covered clauses.

    Raises:
        ConfigError: The clauses cannot be disjoint.
    """
    if clauses * literals > inputs:
        raise ConfigError(
            f"inputs={inputs} are too few for {clauses} disjoint clauses of {literals} literals: "
            f"at least {clauses * literals}."
        )
    children = torch.from_numpy(hashed_children(seed, draws * parents, inputs, alpha))
    children = children.view(draws, 1, parents, inputs)
    mask = (children == torch.arange(alpha, device=children.device)[:, None, None]).flatten(1, 2)
    variables = torch.arange(clauses * literals, device="cpu").view(clauses, literals)
    found = (clause_collisions(mask, variables, alpha), clause_coverage(mask, variables))
    collisions, coverage = (
        Estimate(float(v.double().mean()), float(v.double().std()) / sqrt(draws)) for v in found
    )
    return collisions, coverage
