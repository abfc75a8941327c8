"""The weight metrics of whole models, plain or widened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..discovery import find_mlps
from ..layers import UpLayer
from ..linear import weight_of
from ..modules import fpe_layers
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
        One entry per projection.
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
    if names is None:
        names = [name for name, layer in fpe_layers(model) if isinstance(layer, UpLayer)]
        names = names or [up for block in find_mlps(model) for up in block.ups]
    for name in names:
        module = model.get_submodule(name)
        weight = module.dense_weight() if isinstance(module, UpLayer) else weight_of(module)
        yield name, weight.detach()
