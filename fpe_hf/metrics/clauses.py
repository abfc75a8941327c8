"""Interference read off the masks of a Boolean task's neurons: who reads which clause whole."""

from __future__ import annotations

import torch
from torch import Tensor


def whole_clauses(mask: Tensor, clauses: Tensor) -> Tensor:
    """Which neurons read which clauses whole.

    Args:
        mask: Which inputs each neuron reads, bool `[..., neurons, inputs]`.
        clauses: Variables of each clause, int64 `[clauses, literals]`.

    Returns:
        bool `[..., neurons, clauses]`.
    """
    read: Tensor = mask[..., clauses]
    return read.all(-1)


def clause_collisions(mask: Tensor, clauses: Tensor, alpha: int = 1) -> Tensor:
    """How often two clauses share a child.

    The share of pairs (parent, pair of clauses) for which some child of the parent reads both
    clauses whole. 1 for dense neurons. Source: arXiv 2510.04500, where it is estimated as
    `alpha^-(2k-1)` for a random split.

    Args:
        mask: bool `[..., alpha * parents, inputs]`, child `c` of parent `i` at `c * parents + i`.
        clauses: int64 `[clauses, literals]`.
        alpha: Children per parent.

    Returns:
        float `[...]`; NaN for fewer than two clauses.
    """
    whole = whole_clauses(mask, clauses).float()
    children = whole.unflatten(-2, (alpha, -1))
    shared = (children.unsqueeze(-1) * children.unsqueeze(-2)).amax(-4)
    pairs = torch.triu_indices(len(clauses), len(clauses), 1, device=mask.device)
    found: Tensor = shared[..., pairs[0], pairs[1]]
    return found.mean((-1, -2))


def clause_coverage(mask: Tensor, clauses: Tensor) -> Tensor:
    """Share of clauses that at least one neuron reads whole. Source: arXiv 2510.04500.

    Args:
        mask: bool `[..., neurons, inputs]`.
        clauses: int64 `[clauses, literals]`.

    Returns:
        float `[...]`.
    """
    return whole_clauses(mask, clauses).any(-2).float().mean(-1)


def clause_load(mask: Tensor, clauses: Tensor) -> Tensor:
    """Clauses each neuron reads whole: its polysemantic load, int64 `[..., neurons]`."""
    return whole_clauses(mask, clauses).sum(-1)
