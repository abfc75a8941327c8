"""Open blocks in a module of their own."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from fpe_hf.closing import OpenBlock, open_blocks
from planning.cases import Case, cases, make_case


class Held(nn.Module):
    """A block's layers, and an MLP made of them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.mlp = nn.Module()
        *self.names, self.last = (*case.block.ups, case.block.down)
        for name, layer in zip((*self.names, self.last), case.layers(), strict=True):
            self.mlp.add_module(name.rpartition(".")[2], layer)
        self.fused = case.block.fused

    def forward(self, x: Tensor) -> Tensor:
        hidden = [self.get_submodule(name)(x) for name in self.names]
        if self.fused == "halves":
            hidden = list(hidden[0].chunk(2, -1))
        elif self.fused == "interleaved":
            hidden = [hidden[0][..., 0::2], hidden[0][..., 1::2]]
        first, *others = hidden
        z = torch.tanh(first)
        for other in others:
            z = z * other
        result: Tensor = self.get_submodule(self.last)(z)
        return result

    @property
    def block(self) -> OpenBlock:
        """The open block."""
        (found,) = open_blocks(self)
        return found


OPEN: dict[str, Any] = {
    "layout": "element",
    "coupling": 0.0,
    "learn_coupling": False,
}


def open_cases(**fixed: Any) -> st.SearchStrategy[Case]:
    """Cases whose split is learned."""
    return cases(**{**OPEN, "fan_out": "replicate", "split": "learned", **fixed})


def held(kind: str = "plain", **config: Any) -> Held:
    """A block whose split is learned."""
    return Held(make_case(kind, **{**OPEN, "split": "learned", "alpha": 3, **config}))


@torch.no_grad()
def shake(model: nn.Module, seed: int, size: float = 0.3) -> None:
    """Changes all weights, as an optimizer would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
