"""Random draws on the CPU that depend on a seed and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """What one seed gives, draw by draw, whatever the default dtype and device of torch are."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        """From 0 to 1 (float32)."""
        return torch.rand(shape, generator=self._generator, dtype=torch.float32, device="cpu")

    def normal(self, *shape: int) -> Tensor:
        """Of mean 0 and standard deviation 1 (float32)."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32, device="cpu")

    def below(self, limit: int, *shape: int) -> Tensor:
        """From 0 to `limit - 1` (int64)."""
        return torch.randint(limit, shape, generator=self._generator, device="cpu")

    def order(self, count: int) -> Tensor:
        """The integers from 0 to `count - 1`, shuffled (int64)."""
        return torch.randperm(count, generator=self._generator, device="cpu")
