"""The overlap control: children that share inputs, at the same number of non-zeros.

It breaks the disjointness of FPE on purpose (paper section 4), so it is no widened model: its
matrices are stored whole, with a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FPEConfig
from ..discovery import MLPBlock, find_mlps
from ..errors import RecipeError
from ..linear import bias_of, stock_of, weight_of
from ..modules import take_weights
from ..planning.budget import affordable
from ..planning.draw import draw_overlapping
from ..planning.prune import keep_largest
from ..selection import select_blocks
from ..splits import derive_seed


class MaskedLinear(nn.Module):
    """A linear layer some of whose weights are zero and stay so.

    Attributes:
        weight: `[out_features, in_features]`.
        bias: `[out_features]` or `None`.
        mask: bool buffer, of the shape of `weight`: which weights there are.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, mask: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.where(mask, weight, 0).contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.contiguous())
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` -> `[..., out_features]`."""
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


@dataclass(frozen=True)
class OverlapPlan:
    """Which weights of a block the children keep.

    Attributes:
        block: The block.
        alpha: Children per parent.
        ups: One bool mask `[alpha * parents, inputs]` per up.
        down: bool `[outputs, alpha * parents]`.
    """

    block: MLPBlock
    alpha: int
    ups: tuple[Tensor, ...]
    down: Tensor


def check_plain(model: nn.Module, block: MLPBlock, arm: str) -> None:
    """Refuses blocks that are not made of linear modules of their own.

    Raises:
        RecipeError: It is such a block.
    """
    kinds = {stock_of(model.get_submodule(name)) for name in (*block.ups, block.down)}
    if block.experts > 1 or block.fused or not kinds <= {"linear", "conv1d"} or block.shared:
        raise RecipeError(
            f"compare.arms: {arm!r} cannot be made for the block {block.name!r} (experts, fused, "
            "shared and convolutional blocks have no such control); leave it out of the arms."
        )


def plan_overlap(
    model: nn.Module, config: FPEConfig, example_inputs: Mapping[str, Any]
) -> list[OverlapPlan]:
    """Draws overlapping inputs for the children of every block that `config` would widen.

    Every child reads as many inputs as under a disjoint split, drawn on its own. Then the smallest
    magnitudes are pruned until the non-zeros fit the budget, the children's biases included.

    Raises:
        RecipeError: A block is of a kind that cannot be masked.
    """
    selected = select_blocks(find_mlps(model, example_inputs), config)
    return [_plan(model, block, own) for block, own in selected]


def _plan(model: nn.Module, block: MLPBlock, config: FPEConfig) -> OverlapPlan:
    check_plain(model, block, "overlap")
    weights, alpha = take_weights(model, block), config.alpha
    biases = sum(bias.numel() for bias in weights.up_biases if bias is not None)
    seed = derive_seed(config.seed, block.name, "overlap")
    reads = draw_overlapping(block.parents, block.in_features, alpha, seed).flatten(0, 1)
    copies = [up[0].detach().cpu().repeat(alpha, 1) * reads for up in weights.ups]
    down = weights.down.detach().cpu()
    outputs = 0 if weights.down_bias is None else weights.down_bias.numel()
    whole = sum(int(tensor.numel()) for tensor in weights.numbers)
    keep = affordable(config.budget, whole) - alpha * biases - outputs
    if keep <= 0:
        raise RecipeError(
            f"widen.budget={config.budget} does not pay for the biases of {alpha * block.parents} "
            f"children in the block {block.name!r}: raise it, or leave 'overlap' out of the arms."
        )
    up_masks, down_mask = keep_largest(copies, down, alpha, keep)
    return OverlapPlan(block, alpha, tuple(up_masks), down_mask.repeat(1, alpha))


def apply_overlap(model: nn.Module, plans: list[OverlapPlan]) -> None:
    """Puts masked layers in place, in any model of the structure of the planned one."""
    for plan in plans:
        for name, mask in zip(plan.block.ups, plan.ups, strict=True):
            module = model.get_submodule(name)
            bias = bias_of(module)
            bias = None if bias is None else bias.detach().repeat(plan.alpha)
            weight = weight_of(module).detach().repeat(plan.alpha, 1)
            model.set_submodule(name, MaskedLinear(weight, bias, mask.to(weight.device)))
        module = model.get_submodule(plan.block.down)
        bias = bias_of(module)
        bias = None if bias is None else bias.detach().clone()
        weight = weight_of(module).detach().repeat(1, plan.alpha)
        layer = MaskedLinear(weight, bias, plan.down.to(weight.device))
        model.set_submodule(plan.block.down, layer)
