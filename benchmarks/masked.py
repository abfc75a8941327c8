"""The naive way: matrices of the widened size, zeros included."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional


class MaskedLinear(nn.Module):
    """A linear module with zeros filled in. In training it multiplies its weight by a mask in every
    pass, as `torch.nn.utils.prune` does; without gradients that is not needed.

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
        weight = self.weight * self.mask if torch.is_grad_enabled() else self.weight
        return functional.linear(x, weight, self.bias)


def mask(dense: nn.Module, zeros: set[str]) -> nn.Module:
    """A copy of a model with masks on some of its linear modules.

    Args:
        dense: The model, zeros filled in.
        zeros: Dotted names of the modules.
    """
    masked = copy.deepcopy(dense)
    for name in zeros:
        module = masked.get_submodule(name)
        if isinstance(module, nn.Linear):  # GPT-2 has others, which keep their zeros filled in
            masked.set_submodule(name, MaskedLinear(module))
    return masked
