"""Many small MLPs as one: every tensor has a leading dimension that counts the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..draws import Draws
from ..errors import ConfigError

_FIELDS = ("weights", "biases", "masks")


@dataclass(frozen=True)
class Networks:
    """A batch of ReLU networks of one shape, each with its own masks.

    Entries where a mask is false are zero and stay zero. The numbers of a network are its unmasked
    weights and its biases.

    Attributes:
        weights: One tensor `[models, outputs, inputs]` per layer.
        biases: One tensor `[models, outputs]` per layer.
        masks: Which weights exist: bool, like `weights`.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.weights[0])

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs: `[models, examples, inputs]` -> `[models, examples, outputs]`."""
        return self.layers(x)[-1]

    def layers(self, x: Tensor) -> list[Tensor]:
        """Activations of every hidden layer, then the outputs: `[models, examples, width]` each."""
        found: list[Tensor] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
            if len(found) < len(self.weights) - 1:
                x = x.relu()
            found.append(x)
        return found

    def numbers(self) -> Tensor:
        """Unmasked weights plus biases of each model, int64 `[models]`."""
        kept = torch.stack([mask.sum((1, 2)) for mask in self.masks]).sum(0)
        return kept + sum(bias.shape[1] for bias in self.biases)

    def masked(self) -> Networks:
        """A copy whose masked weights are zero."""
        weights = (w * m for w, m in zip(self.weights, self.masks, strict=True))
        return replace(self, weights=tuple(weights))

    def take(self, models: Tensor | slice) -> Networks:
        """Some of the models."""
        return Networks(*(tuple(t[models] for t in getattr(self, name)) for name in _FIELDS))


def join(batches: Sequence[Networks]) -> Networks:
    """Batches of networks of one shape as one batch, in this order."""
    fields = ([getattr(batch, name) for batch in batches] for name in _FIELDS)
    return Networks(*(tuple(map(torch.cat, zip(*field, strict=True))) for field in fields))


def init_networks(models: int, sizes: list[int], *, seed: int = 0) -> Networks:
    """Draws dense networks, uniform in `+-1/sqrt(inputs)` like the layers of `torch.nn`.

    Args:
        models: How many.
        sizes: Inputs, hidden widths, outputs.
        seed: Seed.

    Raises:
        ConfigError: A size is missing or not positive.
    """
    if len(sizes) < 2 or min(sizes) < 1 or models < 1:
        raise ConfigError(
            f"models={models}, sizes={sizes}: give one or more models, and the inputs, hidden "
            "widths and outputs, all positive."
        )
    draws = Draws(seed)

    def uniform(*shape: int, fan_in: int) -> Tensor:
        return (2 * draws.uniform(*shape) - 1) / math.sqrt(fan_in)

    pairs = list(pairwise(sizes))
    weights = tuple(uniform(models, outputs, inputs, fan_in=inputs) for inputs, outputs in pairs)
    biases = tuple(uniform(models, outputs, fan_in=inputs) for inputs, outputs in pairs)
    masks = tuple(torch.ones_like(weight, dtype=torch.bool) for weight in weights)
    return Networks(weights, biases, masks)
