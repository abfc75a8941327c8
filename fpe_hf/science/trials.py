"""Training dense networks and expanded ones on the same examples, and testing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import feature_capacity, mean_cosine
from ..splits import Split
from .networks import Networks, join
from .splitting import expand
from .statistics import Mean, mean
from .training import Training, accuracy, train

DENSE, RANDOM = "dense", "random"

Arm = tuple[str, int]
"""A split and an expansion factor; `("dense", 1)` is the baseline."""


@dataclass(frozen=True)
class Trials:
    """Examples to train and to test on, one set per model or one for all.

    Attributes:
        x: Training inputs `[models or 1, examples, inputs]`.
        y: Training labels `[models or 1, examples]` (see `fpe_hf.science.training.train`).
        test_x: Test inputs.
        test_y: Test labels.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def train(self, networks: Networks, how: Training) -> Networks:
        """Trains each network on its examples."""
        return train(networks, self.x, self.y, how)

    def outcome(self, networks: Networks) -> Outcome:
        """Tests trained networks."""
        return Outcome(100 * accuracy(networks, self.test_x, self.test_y), networks)

    def splits(self, name: str, models: int) -> list[str | Split]:
        """What divides the inputs of each model under a name."""
        return [name] * models

    def compare(
        self, warm: Networks, arms: Iterable[Arm], after: Training
    ) -> Mapping[Arm, Outcome]:
        """Trains dense networks and expanded ones from the same warm-up.

        Args:
            warm: Dense networks, trained up to the split.
            arms: Splits and expansion factors.
            after: Training after the split, also of the dense networks.

        Returns:
            Outcomes by arm, the dense baseline first.
        """
        arms = list(arms)
        outcomes = {(DENSE, 1): self.outcome(self.train(warm, after))}
        for alpha in dict.fromkeys(alpha for _, alpha in arms):
            # Networks of one shape train as one batch: most of the time is overhead.
            names = [name for name, own in arms if own == alpha]
            splits = [self.splits(name, len(warm)) for name in names]
            trained = self.train(join([expand(warm, alpha, own) for own in splits]), after)
            for place, name in enumerate(names):
                own = slice(place * len(warm), (place + 1) * len(warm))
                outcomes[name, alpha] = self.outcome(trained.take(own))
        return {arm: outcomes[arm] for arm in [(DENSE, 1), *arms]}


@dataclass(frozen=True)
class Outcome:
    """Trained and tested networks, one per seed.

    Attributes:
        accuracy: Test accuracy in percent, `[seeds]`.
        networks: The networks.
    """

    accuracy: Tensor
    networks: Networks

    @property
    def mean(self) -> Mean:
        """Mean accuracy."""
        return mean(self.accuracy)

    def gain(self, dense: Outcome) -> Mean:
        """Mean difference of the accuracies from those of the same seeds, in points."""
        return mean(self.accuracy - dense.accuracy)

    @property
    def capacity(self) -> float:
        """Mean feature capacity of the first layer, over inputs and seeds."""
        weights = self.networks.masked().weights[0]
        return float(torch.stack([feature_capacity(w).mean() for w in weights]).mean())

    @property
    def cosine(self) -> float:
        """Mean absolute cosine similarity of the first layer's neurons, over pairs and seeds."""
        weights = self.networks.masked().weights[0]
        return sum(mean_cosine(weight, absolute=True) for weight in weights) / len(weights)
