"""Runs a model forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def run(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Output, and gradients of the inputs and of every parameter."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    output: Tensor = model(x)
    yield output.detach()
    output.backward(torch.sin(torch.arange(output.numel(), dtype=x.dtype)).view_as(output))
    for tensor in (x, *model.parameters()):
        assert tensor.grad is not None
        yield tensor.grad.clone()
