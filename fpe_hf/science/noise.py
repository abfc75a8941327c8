"""Networks under noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .networks import Networks


def noisy_inputs(x: Tensor, level: float, *, seed: int = 0) -> Tensor:
    """Adds Gaussian noise with the standard deviation `level`."""
    generator = torch.Generator().manual_seed(seed)
    return x + level * torch.randn(x.shape, generator=generator)


def noisy_weights(networks: Networks, level: float, *, seed: int = 0) -> Networks:
    """Adds Gaussian noise to all weights that exist; masked ones and biases stay as they are.

    Args:
        networks: The networks.
        level: Standard deviation, as a multiple of the root mean square of the weights that exist
            in the same layer of the same network. So an equal level is equally loud for all.
        seed: Seed.
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = []
    for weight, mask in zip(networks.masked().weights, networks.masks, strict=True):
        size = (weight.square().sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).sqrt()
        noise = torch.randn(weight.shape, generator=generator)
        noisy.append(weight + level * size[:, None, None] * noise * mask)
    return replace(networks, weights=tuple(noisy))
