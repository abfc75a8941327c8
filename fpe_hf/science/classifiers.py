"""Dense classifiers against expanded ones on labelled data, many seeds at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from .data import Labelled, fashion_mnist
from .networks import Networks, init_networks
from .training import Training
from .trials import Arm, Outcome, Trials

HALF = Training(epochs=25, batch_size=64, lr=3e-3)
"""Training before the split; and after it, with another order of the examples."""

PIXELS = replace(HALF, batch_size=256)
"""The same for networks on pixels."""


def pixels(full: bool) -> Labelled:
    """FashionMNIST, or its first 10,000 examples."""
    data = fashion_mnist()
    return data if full else data.first_examples(10_000, 10_000)


def trials(data: Labelled) -> Trials:
    """One set of examples for all models; inputs are flattened."""
    x, test_x = (t.flatten(1).unsqueeze(0) for t in (data.x, data.test_x))
    return Trials(x, data.y.unsqueeze(0), test_x, data.test_y.unsqueeze(0))


def warm_up(data: Labelled, hidden: Sequence[int], seeds: int, how: Training = HALF) -> Networks:
    """Dense classifiers, trained up to the split.

    Args:
        data: The data.
        hidden: Hidden widths.
        seeds: How many; they differ in the weights that they start from.
        how: Training before the split.
    """
    sizes = [data.x[0].numel(), *hidden, len(data.names)]
    return trials(data).train(init_networks(seeds, sizes, seed=how.seed), how)


def compare_classifiers(
    data: Labelled,
    hidden: Sequence[int],
    arms: Iterable[Arm],
    *,
    seeds: int,
    half: Training = HALF,
) -> Mapping[Arm, Outcome]:
    """Trains dense classifiers and expanded ones from the same warm-up.

    Args:
        data: The data.
        hidden: Hidden widths of the dense parents; all hidden layers are expanded.
        arms: Splits and expansion factors; none trains the baseline alone.
        seeds: Networks per arm.
        half: Training before the split, and again after it.

    Returns:
        Outcomes by arm; `("dense", 1)` is the baseline.
    """
    warm = warm_up(data, hidden, seeds, half)
    return trials(data).compare(warm, arms, replace(half, seed=half.seed + 1))


def hidden_activations(networks: Networks, x: Tensor) -> Tensor:
    """Activations of the first hidden layer, `[models, examples, neurons]`.

    Args:
        networks: The classifiers.
        x: Inputs `[examples, ...]`.
    """
    x = x.flatten(1)
    return networks.layers(x.expand(len(networks), *x.shape))[0]
