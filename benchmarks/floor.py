"""The floor: the parent's matrix products, and the activation on `alpha` times more elements.

No widened block with `alpha` times the hidden neurons can do with less arithmetic. The products
are those of the eager parent; the activation runs over one chunk of memory that stays in the cache,
as it would if it were fused into the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import activation, projections

CHUNK = {"cpu": 2**17, "cuda": 2**22}
"""Most elements of a chunk: half a megabyte in float32 on a CPU, within its second-level cache."""


def chunks(elements: int, largest: int) -> tuple[int, int]:
    """Into how many equal chunks of at most `largest` elements to cut, and how long they are.

    Args:
        elements: How many elements there are.
        largest: Most elements of a chunk.

    Returns:
        Number and length; the product is at least `elements` and less than one element per chunk
        above it.
    """
    number = max(1, math.ceil(elements / largest))
    return number, math.ceil(elements / number)


class Floor(nn.Module):
    """As much work as a widened block cannot avoid. What it returns means nothing.

    Args:
        parent: The dense block; its parameters are shared.
        alpha: Children per parent.
    """

    def __init__(self, parent: nn.Module, alpha: int) -> None:
        super().__init__()
        ups, self.down = projections(parent)
        self.ups = nn.ModuleList(ups)
        self.alpha = alpha
        self._activation = activation(parent)
        self._scratch: dict[int, _Scratch] = {}

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` -> `[..., inputs]`."""
        z = [up(x) for up in self.ups]
        elements = self.alpha * z[0].numel()
        if elements not in self._scratch:
            with torch.enable_grad():
                self._scratch[elements] = _Scratch(self._activation, elements, z)
        hidden = _Activate.apply(self._scratch[elements], *z)  # type: ignore[no-untyped-call]
        y: Tensor = self.down(hidden)
        return y


class _Scratch:
    """One chunk, activated again and again."""

    def __init__(self, activation: Callable[..., Tensor], elements: int, z: list[Tensor]) -> None:
        self.number, length = chunks(elements, CHUNK[z[0].device.type])
        self.inputs = [torch.randn_like(source.new_empty(length)).requires_grad_() for source in z]
        self.activation = activation
        self.output = activation(*self.inputs)  # its graph is kept for `backward`
        self.grad = torch.ones_like(self.output)

    @torch.no_grad()
    def forward(self) -> None:
        for _ in range(self.number):
            self.activation(*self.inputs)

    def backward(self) -> None:
        for _ in range(self.number):
            torch.autograd.grad(self.output, self.inputs, self.grad, retain_graph=True)


class _Activate(torch.autograd.Function):
    """Passes the first source on, and its gradient to all of them, after the work is done."""

    @staticmethod
    def forward(ctx: Any, scratch: _Scratch, *z: Tensor) -> Tensor:
        ctx.scratch, ctx.sources = scratch, len(z)
        scratch.forward()
        return z[0].view_as(z[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.scratch.backward()
        return None, *grads * ctx.sources
