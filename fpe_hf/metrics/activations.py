"""What neurons respond to, read off their activations `[examples, neurons]`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError


def class_means(activations: Tensor, labels: Tensor) -> Tensor:
    """Mean activation of each neuron for each class, `[neurons, classes]`.

    Args:
        activations: `[examples, neurons]`.
        labels: Class indices `[examples]`; every class from 0 to the largest must occur.

    Raises:
        ConfigError: The shapes differ or a class has no example.
    """
    if activations.dim() != 2 or labels.shape != activations.shape[:1]:
        raise ConfigError(
            f"activations {tuple(activations.shape)} and labels {tuple(labels.shape)} do not fit: "
            "give [examples, neurons] and [examples]."
        )
    counts = torch.bincount(labels)
    if bool((counts == 0).any()):
        empty = (counts == 0).nonzero().squeeze(1).tolist()
        raise ConfigError(f"classes {empty} have no example: number the classes from 0 on.")
    sums = activations.new_zeros(len(counts), activations.shape[1])
    return (sums.index_add_(0, labels, activations) / counts.unsqueeze(1)).T


def class_selectivity(activations: Tensor, labels: Tensor) -> Tensor:
    """How much a neuron prefers one class.

    `(a - b) / (a + b)`, with `a` the largest class mean and `b` the mean of the others: 0 for no
    preference, 1 for one class only. Source: Morcos et al. 2018 (arXiv 1803.06959).

    Args:
        activations: Not negative, `[examples, neurons]`.
        labels: `[examples]`.

    Returns:
        `[neurons]`; 0 for a neuron that never responds.
    """
    means = class_means(activations, labels)
    best = means.amax(1)
    rest = (means.sum(1) - best) / max(means.shape[1] - 1, 1)
    selectivity: Tensor = (best - rest) / (best + rest)
    return selectivity.nan_to_num(0.0)


def class_entropy(activations: Tensor, labels: Tensor) -> Tensor:
    """How evenly a neuron responds to the classes.

    `-sum_c p_c log p_c / log C`, with `p` a neuron's class means divided by their sum: 0 for one
    class only, 1 for all alike. Shannon's entropy, normalised.

    Args:
        activations: Not negative, `[examples, neurons]`.
        labels: `[examples]`.

    Returns:
        `[neurons]`; NaN for a neuron that never responds.
    """
    means = class_means(activations, labels)
    shares = means / means.sum(1, keepdim=True)
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(1)
    return entropy / math.log(means.shape[1])


def polysemanticity(activations: Tensor, labels: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Number of classes (or clauses) each neuron responds to.

    Those whose mean activation is at least `threshold` of the largest class mean. It counts what
    arXiv 2510.04500 and Elhage et al. 2022 (arXiv 2209.10652) call a polysemantic neuron's
    features.

    Args:
        activations: Not negative, `[examples, neurons]`.
        labels: `[examples]`.
        threshold: From 0 to 1.

    Returns:
        int64 `[neurons]`; 0 for a neuron that never responds.
    """
    means = class_means(activations, labels)
    best = means.amax(1, keepdim=True)
    return ((means >= threshold * best) & (best > 0)).sum(1)


def top_purity(activations: Tensor, labels: Tensor, *, count: int = 50) -> Tensor:
    """How pure the examples are that move a neuron most.

    The share of the most frequent class among the `count` examples with the largest activations: 1
    if they are all of one class.

    Args:
        activations: `[examples, neurons]`.
        labels: Class indices `[examples]`.
        count: How many examples, at most as many as there are.

    Returns:
        `[neurons]`.

    Raises:
        ConfigError: `count` is out of range.
    """
    if not 1 <= count <= len(labels):
        raise ConfigError(f"count={count}: give a number from 1 to the {len(labels)} examples.")
    classes = labels[activations.topk(count, 0).indices]  # [count, neurons]
    shares = torch.nn.functional.one_hot(classes).float().mean(0)
    return shares.amax(1)


def effective_rank(activations: Tensor) -> float:
    """Number of dimensions activations fill, by entropy.

    `exp(-sum_i p_i log p_i)`, with `p` the singular values of the centred activations divided by
    their sum. Source: Roy and Vetterli 2007.
    """
    values = _singular_values(activations)
    shares = values / values.sum()
    return float(torch.special.xlogy(shares, shares).sum().neg().exp())


def participation_ratio(activations: Tensor) -> float:
    """Number of dimensions activations fill, by variance.

    `(sum_i l_i)^2 / sum_i l_i^2`, with `l` the eigenvalues of the covariance. Source: Gao et al.
    2017 (bioRxiv 214262).
    """
    eigenvalues = _singular_values(activations).square()
    return float(eigenvalues.sum().square() / eigenvalues.square().sum())


def _singular_values(activations: Tensor) -> Tensor:
    """Of the centred activations, by way of the smaller of the two Gram matrices."""
    centred = (activations - activations.mean(0)).double()
    tall = centred.shape[0] >= centred.shape[1]
    gram = centred.T @ centred if tall else centred @ centred.T
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp(min=0).sqrt()
