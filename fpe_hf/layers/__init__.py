"""Widened projections, one module per layout, and the way to build a block's."""

from __future__ import annotations

import torch

from ..planning import BlockPlan, BlockSpec, ParentWeights
from .base import DownLayer, FPELayer, UpLayer
from .block import BlockDown, BlockUp
from .element import ElementDown, ElementUp
from .experts import EXPERTS_STOCKS, move_in, move_out
from .open import OpenDown, OpenLayer, OpenUp

__all__ = [
    "EXPERTS_STOCKS",
    "BlockDown",
    "BlockUp",
    "DownLayer",
    "ElementDown",
    "ElementUp",
    "FPELayer",
    "OpenDown",
    "OpenLayer",
    "OpenUp",
    "UpLayer",
    "build_layers",
    "empty_layers",
    "empty_twin",
    "move_in",
    "move_out",
]

Up = ElementUp | BlockUp | OpenUp
Down = ElementDown | BlockDown | OpenDown

_LAYOUTS: dict[str, tuple[type[Up], type[Down]]] = {
    "element": (ElementUp, ElementDown),
    "block": (BlockUp, BlockDown),
    "open": (OpenUp, OpenDown),
}


def build_layers(
    plan: BlockPlan, parent: ParentWeights, stocks: dict[str, str]
) -> dict[str, FPELayer]:
    """The widened modules of a planned block, holding the parent's numbers.

    Args:
        plan: The plan.
        parent: The weights it was made from.
        stocks: Kind (see `fpe_hf.linear`) of each replaced module by name.

    Returns:
        Module name -> layer.
    """
    spec = plan.spec
    up_type, down_type = _LAYOUTS[spec.layout]
    layers: dict[str, FPELayer] = {}
    for index, name in enumerate(spec.ups):
        weight, bias = parent.ups[index], parent.up_biases[index]
        layers[name] = up_type.from_parent(plan, index, stocks[name], weight, bias)
    down = down_type.from_parent(plan, stocks[spec.down], parent.down, parent.down_bias)
    layers[spec.down] = down
    return layers


def empty_layers(
    spec: BlockSpec, stocks: dict[str, str], dtype: torch.dtype, device: torch.device | str
) -> dict[str, FPELayer]:
    """The widened modules of a block, uninitialised, to load a checkpoint into."""
    up_type, down_type = _LAYOUTS[spec.layout]
    layers: dict[str, FPELayer] = {
        name: up_type(spec, index, stocks[name], dtype=dtype, device=device)
        for index, name in enumerate(spec.ups)
    }
    layers[spec.down] = down_type(spec, stocks[spec.down], dtype=dtype, device=device)
    return layers


def empty_twin(layer: FPELayer) -> FPELayer:
    """An empty layer of the same kind, without memory."""
    spec = layer.spec
    stocks = dict.fromkeys((*spec.ups, spec.down), layer.stock)
    layers = empty_layers(spec, stocks, torch.float32, "meta")
    return layers[spec.down if layer.index is None else spec.ups[layer.index]]
