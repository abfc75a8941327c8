"""The MLP blocks that are measured: modules of transformers, at the widths of real models."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.llama.modeling_llama import LlamaMLP


class Shape(NamedTuple):
    """The widths of a dense parent.

    Attributes:
        inputs: Inputs, and outputs.
        hidden: Hidden neurons.
        gated: Whether there is a gate beside the up projection (and, as in Llama, no bias).
    """

    inputs: int
    hidden: int
    gated: bool = False

    @property
    def name(self) -> str:
        """As written in tables: `768x3072`, `4096x14336 gated`."""
        return f"{self.inputs}x{self.hidden}" + (" gated" if self.gated else "")

    @property
    def sources(self) -> int:
        """Matrices that feed the hidden neurons."""
        return 2 if self.gated else 1

    @property
    def weights(self) -> int:
        """Weights of the dense parent, without biases."""
        return (self.sources + 1) * self.inputs * self.hidden


PLAIN = (Shape(384, 1536), Shape(768, 3072), Shape(1024, 4096))
SHAPES = (*PLAIN, Shape(4096, 14336, gated=True))


def make_parent(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> nn.Module:
    """A dense MLP inside a model, as users have it, with the same random weights every time.

    Args:
        shape: Widths.
        dtype: Of the weights.
        device: Where.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    widths = {"hidden_size": shape.inputs, "intermediate_size": shape.hidden}
    widths["num_attention_heads"] = 1  # has no part in this, but must divide the inputs
    with torch.device(device):
        if shape.gated:
            mlp: nn.Module = LlamaMLP(LlamaConfig(**widths, hidden_act="silu"))
        else:
            mlp = CLIPMLP(CLIPVisionConfig(**widths, hidden_act="gelu"))
    # The config of a whole model, which this is not: nothing may write to it or read from it.
    del mlp.config
    return nn.Sequential(mlp).to(dtype)


def make_tokens(shape: Shape, tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Inputs of a block `[1, tokens, inputs]`, the same every time."""
    generator = torch.Generator().manual_seed(tokens)
    drawn = torch.randn(1, tokens, shape.inputs, generator=generator)
    return drawn.to(device, dtype)


def projections(block: nn.Module) -> tuple[list[nn.Linear], nn.Linear]:
    """The up projections (gate first) and the down projection of a dense block."""
    mlp = block[0]  # type: ignore[index]
    if isinstance(mlp, LlamaMLP):
        return [mlp.gate_proj, mlp.up_proj], mlp.down_proj
    return [mlp.fc1], mlp.fc2


def activation(block: nn.Module) -> Callable[..., Tensor]:
    """What a dense block does between its projections, a function of the up projections'
    outputs."""
    mlp = block[0]  # type: ignore[index]
    if isinstance(mlp, LlamaMLP):
        act = mlp.act_fn
        return lambda gate, up: act(gate) * up
    function: Callable[..., Tensor] = mlp.activation_fn
    return function
