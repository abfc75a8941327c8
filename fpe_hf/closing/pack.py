"""From an open block that keeps its budget to `element` layers, in the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import BudgetError
from ..layers import ElementDown, ElementUp, FPELayer, OpenLayer, OpenUp, empty_layers
from ..layers.experts import move_in, move_out
from ..modules import projections, replace_module
from ..packing import take_kept
from ..planning import BlockPlan, BlockSpec
from ..planning.draw import draw_up_children
from ..planning.spec import INDEPENDENT
from .block import OpenBlock

_SUCCESSOR = "_fpe_successor"


@dataclass(frozen=True)
class Packed:
    """What became of a matrix.

    Attributes:
        old: The parameter of the open layer.
        new: The parameter of the layer that took its place: `[values]`.
        spec: The closed block.
        take: Takes from a tensor of the shape of `old`, such as a moment of the optimizer, what
            belongs to `new`.
    """

    old: nn.Parameter
    new: nn.Parameter
    spec: BlockSpec
    take: Callable[[Tensor], Tensor]


@torch.no_grad()
def pack(model: nn.Module, block: OpenBlock) -> list[Packed]:
    """Puts `element` layers in the place of a block's open ones. Biases stay the same parameters.

    Args:
        model: The model that holds the block.
        block: The block, pruned to its budget.

    Raises:
        BudgetError: Siblings share inputs.
    """
    plan = _closed_plan(block)
    layers = closed_layers(block, plan.spec)
    packed = []
    for old, new in zip(block.layers, layers, strict=True):

        def take(tensor: Tensor, old: OpenLayer = old) -> Tensor:
            return _take(tensor, old, plan)

        weight = old.weight
        index = {name: own.to(weight.device) for name, own in new.where(plan).items()}
        new.bind({**index, "weight": take(weight.detach())})
        new.settle()
        packed.append(Packed(weight, new.weight, plan.spec, take))
    put(model, block, layers)
    return packed


def closed_spec(
    block: OpenBlock, is_drawn: bool, up_values: Sequence[int], down_values: int
) -> BlockSpec:
    """What a block becomes.

    Args:
        block: The open block.
        is_drawn: Whether its inputs ended where the random split would have put them.
        up_values: Weights that each up projection keeps.
        down_values: Weights that the down projection keeps.
    """
    return replace(
        block.down.spec,
        layout="element",
        fan_out=INDEPENDENT,
        final_weights=(),
        assignment="hash" if is_drawn else "kept",
        up_values=tuple(up_values),
        down_values=down_values,
        up_pruned=tuple(
            values < up.values // block.spec.alpha
            for values, up in zip(up_values, block.ups, strict=True)
        ),
        down_pruned=down_values < block.down.values,
    )


def closed_layers(block: OpenBlock, spec: BlockSpec) -> list[ElementUp | ElementDown]:
    """Empty layers for a closed block, in the order of the open ones, with their biases."""
    weight = block.down.weight
    stocks = dict(zip(projections(spec), (layer.stock for layer in block.layers), strict=True))
    layers = empty_layers(spec, stocks, weight.dtype, weight.device)
    ordered = [layers[name] for name in projections(spec)]
    for old, new in zip(block.layers, ordered, strict=True):
        if old.bias is not None:
            new._parameters["bias"] = old.bias
    return ordered  # type: ignore[return-value]


def put(model: nn.Module, block: OpenBlock, layers: Sequence[FPELayer]) -> None:
    """Puts layers in the place of a block's open ones."""
    for old, new in zip(block.layers, layers, strict=True):
        old.closed = new.spec
        vars(old.weight)[_SUCCESSOR] = new
    if block.spec.experts == 1:
        for old, new in zip(block.layers, layers, strict=True):
            replace_module(model, old, new)
        return
    homes = [old.home for old in block.layers]
    for host, _ in homes:
        move_out(host)
    for (host, names), new in zip(homes, layers, strict=True):
        move_in(host, new, names["weight"], names.get("bias"))


def successor(parameter: Tensor) -> nn.Parameter | None:
    """The weights that took the place of an open layer's, for an optimizer that was made for these
    and did not hear of it."""
    layer: FPELayer | None = getattr(parameter, _SUCCESSOR, None)
    return None if layer is None else layer.weight


def _closed_plan(block: OpenBlock) -> BlockPlan:
    """The plan of what is alive."""
    masks = [up.by_child(up.mask) for up in block.ups]
    readers = torch.cat(masks).any(0)  # [experts, alpha, parents, inputs]
    if int(readers.sum(1).max()) > 1:
        raise BudgetError(f"children of block {block.spec.name!r} share inputs.")
    children = readers.to(torch.uint8).argmax(1).to(torch.uint8).flatten(0, 1).cpu()
    drawn = draw_up_children(block.spec)
    is_drawn = bool(((children == drawn) | ~readers.any(1).flatten(0, 1).cpu()).all())
    up_keep = [mask.any(2).flatten(1, 2) for mask in masks]
    down_keep = _by_output(block.down.by_child(block.down.mask))
    up_values = [int(keep.count_nonzero()) for keep in up_keep]
    spec = closed_spec(block, is_drawn, up_values, int(down_keep.count_nonzero()))
    return BlockPlan(
        spec=spec,
        up_children=drawn if is_drawn else children,
        up_keep=tuple(
            keep if pruned else None for keep, pruned in zip(up_keep, spec.up_pruned, strict=True)
        ),
        down_keep=down_keep if spec.down_pruned else None,
    )


def _take(tensor: Tensor, old: OpenLayer, plan: BlockPlan) -> Tensor:
    """What is alive of a tensor like an open layer's weights, in the order of packed ones."""
    by_child = old.by_child(tensor)
    if isinstance(old, OpenUp):
        assert plan.up_children is not None
        assert old.index is not None
        children = plan.up_children.to(tensor.device, torch.int64)
        index = children.view(1, plan.spec.experts, 1, plan.spec.parents, -1)
        index = index.expand(len(by_child), -1, -1, -1, -1)
        rows, keep = by_child.gather(2, index).squeeze(2).flatten(0, 2), plan.up_keep[old.index]
    else:
        rows, keep = _by_output(by_child), plan.down_keep
    if keep is None:
        return rows.contiguous().view(-1)
    return take_kept(rows, keep.view(rows.shape))


def _by_output(down: Tensor) -> Tensor:
    """`[outputs, experts, alpha, parents]` -> `[outputs, alpha, all parents]`."""
    return down.transpose(1, 2).flatten(2)
