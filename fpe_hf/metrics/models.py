"""The weight metrics of whole models, plain or widened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..discovery import MLPBlock, find_mlps
from ..layers import UpLayer
from ..linear import weight_of
from ..modules import fpe_layers, take_weights
from .weights import feature_capacity, gram_off_diagonal_energy, mean_cosine


@dataclass(frozen=True)
class Interference:
    """Interference in one up projection.

    Attributes:
        name: Dotted name of the projection.
        neurons: Rows of its matrix.
        feature_capacity: Mean over inputs (`fpe_hf.metrics.feature_capacity`).
        mean_cosine: See `fpe_hf.metrics.mean_cosine`.
        gram_off_diagonal_energy: See `fpe_hf.metrics.gram_off_diagonal_energy`.
    """

    name: str
    neurons: int
    feature_capacity: float
    mean_cosine: float
    gram_off_diagonal_energy: float


def interference(model: nn.Module, names: Iterable[str] | None = None) -> list[Interference]:
    """Measures the projections that feed hidden neurons.

    Args:
        model: A plain or widened model.
        names: Dotted names of the projections; by default the widened up layers, or, in a plain
            model, the ups that `fpe_hf.find_mlps` finds.

    Returns:
        One entry per projection; experts whose matrices a parameter stacks have one each, named
        `parameter[expert]`.
    """
    return [
        Interference(
            name,
            len(weight),
            float(feature_capacity(weight).mean()),
            mean_cosine(weight),
            gram_off_diagonal_energy(weight),
        )
        for name, weight in _up_weights(model, names)
    ]


def _up_weights(model: nn.Module, names: Iterable[str] | None) -> Iterator[tuple[str, Tensor]]:
    if names is not None:
        found = ((name, _weight(model.get_submodule(name))) for name in names)
    elif next(fpe_layers(model), None) is not None:
        found = (
            (layer.key(name, "weight") if layer.host_names else name, layer.dense_weight())
            for name, layer in fpe_layers(model)
            if isinstance(layer, UpLayer)
        )
    else:
        found = (pair for block in find_mlps(model) for pair in _plain_ups(model, block))
    for name, weight in found:
        if weight.dim() == 3:
            yield from ((f"{name}[{e}]", own.detach()) for e, own in enumerate(weight))
        else:
            yield name, weight.detach()


def _weight(module: nn.Module) -> Tensor:
    return module.dense_weight() if isinstance(module, UpLayer) else weight_of(module)


def _plain_ups(model: nn.Module, block: MLPBlock) -> Iterator[tuple[str, Tensor]]:
    if block.experts == 1:
        yield from ((name, weight_of(model.get_submodule(name))) for name in block.ups)
        return
    for name, up in zip(block.ups, take_weights(model, block).ups, strict=True):
        yield name, up.unflatten(1, (block.experts, -1)).transpose(0, 1).flatten(1, 2)
