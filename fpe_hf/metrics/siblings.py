"""How far the children of a parent have parted, in weights and in activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import DownLayer, UpLayer
from ..modules import fpe_layers


@dataclass(frozen=True)
class Siblings:
    """How far siblings have parted in a widened block.

    Distances are from the mean of the siblings, root mean square over all neurons, relative to the
    size of the neurons' own: 0 if siblings are equal, `sqrt(1 - 1 / alpha)` if they have nothing in
    common.

    Attributes:
        name: Name of the block.
        weights: Distance of their incoming weights, coupling included.
        activations: Distance of their activations on a batch; `None` without a batch, and for
            experts that a parameter stacks.
    """

    name: str
    weights: float
    activations: float | None = None


@torch.no_grad()
def sibling_distances(model: nn.Module, batch: Mapping[str, Any] | None = None) -> list[Siblings]:
    """Measures how far the children of parents have parted, block by block.

    Args:
        model: A widened model.
        batch: Keyword arguments of a forward pass, to measure activations, too.

    Returns:
        One entry per widened block; none for a plain model.
    """
    activations = {} if batch is None else _activations(model, batch)
    ups: dict[str, list[UpLayer]] = {}
    for _, layer in fpe_layers(model):
        if isinstance(layer, UpLayer):
            ups.setdefault(layer.spec.name, []).append(layer)
    return [
        Siblings(
            name,
            _distance([up.by_sibling(up.dense_weight()) for up in own]),
            activations.get(name),
        )
        for name, own in ups.items()
    ]


def _activations(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, float]:
    """Distances of activations by block."""
    found: dict[str, float] = {}

    def note(layer: DownLayer, args: tuple[Any, ...]) -> None:
        if args:  # experts are asked for their matrices instead
            children = args[0][..., layer.children_places()]
            found[layer.spec.name] = _distance([children.movedim(-2, 0)])

    downs = [layer for _, layer in fpe_layers(model) if isinstance(layer, DownLayer)]
    hooks = [layer.register_forward_pre_hook(note) for layer in downs]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(**batch)
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    return found


def _distance(siblings: list[Tensor]) -> float:
    """Distance of siblings `[alpha, ...]` from their mean, relative to their size."""
    apart = sum(float((own - own.mean(0)).float().square().sum()) for own in siblings)
    size = sum(float(own.float().square().sum()) for own in siblings)
    return (apart / size) ** 0.5 if size else 0.0
