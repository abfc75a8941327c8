"""Networks under noise."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..draws import Draws
from .networks import Networks


def noisy_inputs(x: Tensor, level: float, *, seed: int = 0) -> Tensor:
    """Adds Gaussian noise with the standard deviation `level`."""
    return x + level * Draws(seed).normal(*x.shape)


def noisy_weights(networks: Networks, level: float, *, seed: int = 0) -> Networks:
    """Adds Gaussian noise to all weights that exist; masked ones and biases stay as they are.

    Args:
        networks: The networks.
        level: Standard deviation, as a multiple of the root mean square of the weights that exist
            in the same layer of the same network. So an equal level is equally loud for all.
        seed: Seed.
    """
    draws = Draws(seed)
    noisy = []
    for weight, mask in zip(networks.masked().weights, networks.masks, strict=True):
        size = (weight.square().sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).sqrt()
        noise = draws.normal(*weight.shape)
        noisy.append(weight + level * size[:, None, None] * noise * mask)
    return replace(networks, weights=tuple(noisy))
