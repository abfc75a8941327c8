"""The naive way: matrices of the widened size, zeros included."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional


class MaskedLinear(nn.Module):
    """A linear module that multiplies its weight by a mask in every forward pass, as training with
    `torch.nn.utils.prune` does.

    Args:
        dense: The module, zeros filled in; its non-zeros are the mask.
    """

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = dense.weight, dense.bias
        self.mask: Tensor
        self.register_buffer("mask", dense.weight.detach().ne(0).to(dense.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        return functional.linear(x, self.weight * self.mask, self.bias)


def mask(dense: nn.Module, names: list[str]) -> nn.Module:
    """A copy of a model with masks on some of its linear modules.

    Args:
        dense: The model, zeros filled in.
        names: Dotted names of the modules.
    """
    masked = copy.deepcopy(dense)
    for name in names:
        masked.set_submodule(name, MaskedLinear(masked.get_submodule(name)))  # type: ignore[arg-type]
    return masked
