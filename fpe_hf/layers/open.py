"""Layers of a block whose budget is open: dense matrices, and masks of what is still alive.

They compute what a wide block computes. `fpe_hf.closing` prunes them until the budget is kept, and
puts `element` layers in their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..draws import Draws
from ..errors import CheckpointError
from ..planning import BlockPlan, BlockSpec
from ..splits import derive_seed
from .base import DownLayer, FPELayer, UpLayer


class OpenLayer(FPELayer):
    """What both kinds share.

    Attributes:
        weight: The matrix of the wide block, experts apart if there are several. What is pruned
            is zero.
        mask: bool buffer of the same shape: which weights are alive.
        closed: The closed block, once another layer has taken this one's place.
    """

    mask: Tensor
    closed: BlockSpec | None = None

    def by_child(self, tensor: Tensor) -> Tensor:
        """A view of the weights, or of something of their shape, that tells children apart: up
        `[sources, experts, alpha, parents, inputs]`, down `[outputs, experts, alpha, parents]`."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        return self.weight

    def nonzeros(self) -> int:
        dead = self.values - int(self.mask.count_nonzero())
        return super().nonzeros() - dead

    @torch.no_grad()
    def kill(self) -> None:
        """Sets weights that are not alive to zero."""
        self.weight.masked_fill_(~self.mask, 0.0)

    def check(self, name: str) -> None:
        weight: Any = self.weight
        if bool(weight.masked_select(~self.mask).any()):
            raise CheckpointError(f"tensor {name + '.weight'!r} holds weights that were pruned.")

    def _mask_like(self, weight: Tensor) -> None:
        """Registers a mask for an empty matrix."""
        mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        self.register_buffer("mask", mask)


class OpenUp(OpenLayer, UpLayer):
    """Up projection with an open budget."""

    def __init__(
        self,
        spec: BlockSpec,
        index: int,
        stock: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        rows = spec.sources_per_up * spec.hidden
        shape = (spec.experts, rows, spec.in_features)[spec.experts == 1 :]
        super().__init__(spec, index, stock, values=shape, dtype=dtype, device=device)
        self._mask_like(self.weight)

    @classmethod
    def from_parent(
        cls, plan: BlockPlan, index: int, stock: str, weight: Tensor, bias: Tensor | None
    ) -> OpenUp:
        """Copies a parent's weights `[sources, parents, inputs]` and bias to all children, or to
        those that the plan names."""
        spec = plan.spec
        layer = cls(spec, index, stock, dtype=weight.dtype, device=weight.device)
        mask = layer.mask
        if plan.up_children is not None:
            codes = plan.up_children.to(weight.device).expand(spec.all_parents, -1)
            child = torch.arange(spec.alpha, dtype=torch.uint8, device=weight.device)
            owned = codes.view(spec.experts, 1, spec.parents, -1) == child.view(-1, 1, 1)
            layer.by_child(mask).copy_(owned)
        extras = {name: t.clone() for name, t in layer.parent_extras(weight, bias).items()}
        layer.bind({name: tensor.detach() for name, tensor in extras.items()})
        parents = weight.detach().view(-1, spec.experts, 1, spec.parents, spec.in_features)
        with torch.no_grad():
            layer.by_child(layer.weight).copy_(parents)
        layer.kill()
        return layer

    def by_child(self, tensor: Tensor) -> Tensor:
        spec = self.spec
        if spec.fused == "interleaved":
            order, sizes = (3, 0, 1, 2, 4), (spec.alpha, spec.parents, spec.sources_per_up)
        else:
            order, sizes = (1, 0, 2, 3, 4), (spec.sources_per_up, spec.alpha, spec.parents)
        return tensor.view(spec.experts, *sizes, spec.in_features).permute(order)

    def project(self, x: Tensor) -> Tensor:
        """`[..., inputs]` -> `[..., sources * hidden]`."""
        return functional.linear(x, self.weight, self.dense_bias())

    def readers(self) -> tuple[Tensor, Tensor]:
        reads, alpha = self.by_child(self.mask).any(0), self.spec.alpha
        child = torch.arange(alpha, dtype=torch.int16, device=reads.device).view(-1, 1, 1)
        first, last = child.where(reads, alpha).amin(1), child.where(reads, -1).amax(1)
        return first.flatten(0, 1), last.flatten(0, 1)


class OpenDown(OpenLayer, DownLayer):
    """Down projection with an open budget."""

    def __init__(
        self,
        spec: BlockSpec,
        stock: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (spec.experts, spec.out_features, spec.hidden)[spec.experts == 1 :]
        super().__init__(spec, stock, values=shape, dtype=dtype, device=device)
        self._mask_like(self.weight)

    @classmethod
    def from_parent(
        cls, plan: BlockPlan, stock: str, weight: Tensor, bias: Tensor | None
    ) -> OpenDown:
        """Gives the children of a parent its outgoing weights `[outputs, parents]`.

        Children that read all inputs get shares, which add up to the parent's weights but are not
        equal: the block computes what its parent did, and siblings part in training. Children that
        divide the inputs get copies (paper section 3, step 3), or each its own weights.
        """
        spec = plan.spec
        layer = cls(spec, stock, dtype=weight.dtype, device=weight.device)
        parents = weight.detach().view(-1, spec.experts, 1, spec.parents)
        outgoing = _shares(spec, parents) if plan.up_children is None else parents
        if plan.down_children is not None:
            codes = plan.down_children.to(weight.device).view(parents.shape)
            child = torch.arange(spec.alpha, dtype=torch.uint8, device=weight.device)
            layer.by_child(layer.mask).copy_(codes == child.view(-1, 1))
        if bias is not None:
            layer.bind({"bias": bias.detach().clone()})
        with torch.no_grad():
            layer.by_child(layer.weight).copy_(outgoing)
        layer.kill()
        return layer

    def by_child(self, tensor: Tensor) -> Tensor:
        spec = self.spec
        shape = (spec.experts, spec.out_features, spec.alpha, spec.parents)
        return tensor.view(shape).transpose(0, 1)

    def project(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., outputs]`."""
        return functional.linear(hidden, self.weight, self.bias)


def _shares(spec: BlockSpec, parents: Tensor) -> Tensor:
    """Unequal shares of outgoing weights `[outputs, experts, 1, parents]`, one per child.

    Each is the mean share plus a draw as large as the mean shares are, and the draws of siblings
    add up to zero.
    """
    outputs, experts, _, hidden = parents.shape
    draws = Draws(derive_seed(spec.seed, "shares")).normal(outputs, experts, spec.alpha, hidden)
    draws = (draws - draws.mean(2, keepdim=True)).to(parents.device)
    size = parents.float().square().mean().sqrt()
    if not size:  # projections that start at zero: as large as a new one's would be
        size = size + hidden**-0.5
    return ((parents.float() + draws * size) / spec.alpha).to(parents.dtype)
