"""Interference metrics: how much features share neurons, in weights, masks and activations.

The functions take tensors; `interference` measures whole models, and `fpe_hf.metrics.measurements`
offers the same as measurements of the `evaluate` library.
"""

from .activations import (
    class_entropy,
    class_means,
    class_selectivity,
    effective_rank,
    participation_ratio,
    polysemanticity,
    top_purity,
)
from .clauses import clause_collisions, clause_coverage, clause_load, whole_clauses
from .models import Interference, interference
from .siblings import Siblings, sibling_distances
from .weights import feature_capacity, gram_off_diagonal_energy, mean_cosine

__all__ = [
    "Interference",
    "Siblings",
    "class_entropy",
    "class_means",
    "class_selectivity",
    "clause_collisions",
    "clause_coverage",
    "clause_load",
    "effective_rank",
    "feature_capacity",
    "gram_off_diagonal_energy",
    "interference",
    "mean_cosine",
    "participation_ratio",
    "polysemanticity",
    "sibling_distances",
    "top_purity",
    "whole_clauses",
]
