from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fpe_hf
from fpe_hf.layers import UpLayer
from fpe_hf.metrics import sibling_distances
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import tiny_mixture

KINDS = ["bert", "gpt2", "llama", "phi3", "mixtral", "gpt_oss"]


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("kind", KINDS)
def test_from_equal_to_nothing_in_common(kind: str, layout: str) -> None:
    """Coupling 1 makes children equal; without it they read different inputs."""
    experts = kind in ("mixtral", "gpt_oss")
    for coupling, expected in ((1.0, 0.0), (0.0, (1 - 1 / 3) ** 0.5)):
        model = tiny_mixture(kind) if experts else tiny_model(kind)
        fpe_hf.widen(model, alpha=3, layout=layout, coupling=coupling, fan_out="partition")
        batch: dict[str, Any] = {"input_ids": torch.arange(5, 9).view(1, -1)}
        found = sibling_distances(model, batch if experts else tiny_inputs(model))
        assert len(found) == 2
        for own in found:
            assert own.weights == pytest.approx(expected, abs=1e-6)
            if experts:
                assert own.activations is None
            elif coupling:
                assert own.activations == pytest.approx(0.0, abs=1e-5)
            else:
                assert own.activations is not None
                assert 0.1 < own.activations < 1.0


@pytest.mark.parametrize("tile_size", [None, 5])
def test_it_is_what_its_definition_says(tile_size: int | None) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(3, 6)
    options: dict[str, Any] = {"layout": "block", "tile_size": tile_size, "coupling": 0.5}
    fpe_hf.widen(model, example_inputs=(x,), **options)
    up = next(layer for _, layer in fpe_layers(model) if isinstance(layer, UpLayer))
    hidden = model[1](model[0](x)).detach().T
    apart = size = 0.0
    for children in up.children_places().T:
        rows = hidden[children]
        apart += float((rows - rows.mean(0)).square().sum())
        size += float(rows.square().sum())
    (found,) = sibling_distances(model, {"input": x})
    assert found.activations == pytest.approx((apart / size) ** 0.5)
    assert sibling_distances(nn.Linear(3, 3)) == []
