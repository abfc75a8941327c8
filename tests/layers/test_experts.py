from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fpe_hf.config import FPEConfig
from fpe_hf.conversion import widen
from fpe_hf.dense import to_dense
from fpe_hf.errors import CheckpointError
from fpe_hf.layers import FPELayer
from fpe_hf.modules import fpe_layers
from fpe_hf.planning import BlockSpec

E, D, H, OUT = 3, 8, 5, 6
LAYOUTS = ("element", "block")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Experts(nn.Module):
    """Every form of fused experts: fused or not, either orientation, with or without biases."""

    def __init__(self, fused: str | None, turned: bool, biased: bool) -> None:
        super().__init__()
        self.fused, self.turned = fused, turned
        rows = 2 * H if fused else H
        shapes = ((rows, D), (OUT, H))
        up, down = ((E, *shape[::-1]) if turned else (E, *shape) for shape in shapes)
        self.up, self.down = nn.Parameter(torch.randn(up)), nn.Parameter(torch.randn(down))
        self.up_bias = nn.Parameter(torch.randn(E, rows)) if biased else None
        self.down_bias = nn.Parameter(torch.randn(E, OUT)) if biased else None
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        up, down = (self.up, self.down) if self.turned else (self.up.mT, self.down.mT)
        hidden = x @ up
        if self.up_bias is not None:
            hidden = hidden + self.up_bias[:, None]
        if self.fail:
            raise RuntimeError("as asked")
        if self.fused == "halves":
            gate, hidden = hidden.chunk(2, -1)
            hidden = gate.sigmoid() * hidden
        elif self.fused == "interleaved":
            hidden = hidden[..., ::2].sigmoid() * hidden[..., 1::2]
        else:
            hidden = hidden.tanh()
        out = hidden @ down
        return out if self.down_bias is None else out + self.down_bias[:, None]


class Model(nn.Module):
    def __init__(self, *form: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Experts(*form)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers[0](x)
        return out + torch.ones_like(out)


def inputs() -> Tensor:
    return torch.randn(E, 4, D, generator=torch.Generator().manual_seed(1))


def widened(model: nn.Module, **config: Any) -> Any:
    return widen(copy.deepcopy(model), FPEConfig(**config), example_inputs=(inputs(),))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", [None, "halves", "interleaved"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("biased", [False, True])
class TestForms:
    def test_exact_start(self, layout: str, fused: str | None, turned: bool, biased: bool) -> None:
        model = Model(fused, turned, biased)
        config = {"coupling": 1.0, "fan_out": "partition", "layout": layout, "alpha": 3}
        wide = widened(model, **config)
        torch.testing.assert_close(wide(inputs()), model(inputs()))
        config["tile_size"] = 2 if layout == "block" else None
        torch.testing.assert_close(widened(model, **config)(inputs()), model(inputs()))

    def test_equals_its_dense_reference(
        self, layout: str, fused: str | None, turned: bool, biased: bool
    ) -> None:
        for options in ({}, {"bias": "child", "learn_coupling": True, "coupling": 0.3}):
            wide = widened(Model(fused, turned, biased), layout=layout, **options)
            dense = to_dense(wide)
            assert dense.layers[0].up.dim() == 3
            assert not any(isinstance(module, FPELayer) for module in dense.modules())
            torch.testing.assert_close(wide(inputs()), dense(inputs()))

    def test_merging_the_children_gives_the_parent_back(
        self, layout: str, fused: str | None, turned: bool, biased: bool
    ) -> None:
        model = Model(fused, turned, biased)
        wide = widened(model, coupling=1.0, fan_out="partition", layout=layout, alpha=3)
        stock = dict(model.layers[0].named_parameters())
        for name, layer in fpe_layers(wide):
            own = name.rpartition("fpe_")[2]
            weight, bias = layer.merged_weight(), layer.merged_bias()
            assert torch.equal(weight.mT if turned else weight, stock[own])
            assert (bias is None) == (not biased)
            assert bias is None or torch.equal(bias, stock[f"{own}_bias"])

    def test_every_expert_keeps_its_budget(
        self, layout: str, fused: str | None, turned: bool, biased: bool
    ) -> None:
        model = Model(fused, turned, biased)
        wide = widened(model, layout=layout)
        layers = [layer for _, layer in fpe_layers(wide)]
        assert {layer.spec.experts for layer in layers} == {E}
        kept = sum(layer.dense_weight().flatten(1).count_nonzero(1) for layer in layers)
        budget = model.layers[0].up[0].numel() + model.layers[0].down[0].numel()
        assert bool((kept <= budget).all())
        if layout == "element":
            assert bool((kept >= budget - 1).all())

    def test_the_spec_survives_json(
        self, layout: str, fused: str | None, turned: bool, biased: bool
    ) -> None:
        spec = next(fpe_layers(widened(Model(fused, turned, biased), layout=layout)))[1].spec
        assert BlockSpec.from_dict(spec.to_dict()) == spec
        assert spec.transposed == (turned, turned)


@pytest.fixture
def wide() -> Any:
    return widened(Model("halves", False, True))


def test_parameters_keep_their_names_and_are_flat(wide: Any) -> None:
    names = dict(wide.named_parameters())
    assert set(names) == {f"layers.0.{name}" for name in ("up", "down", "up_bias", "down_bias")}
    assert all(parameter.dim() == 1 for parameter in names.values())


def test_gradients_reach_every_number(wide: Any) -> None:
    wide(inputs()).square().sum().backward()
    for parameter in wide.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.count_nonzero() > 0)


def test_the_dense_tensors_are_gone_after_a_forward_and_after_a_failure(wide: Any) -> None:
    host = wide.layers[0]
    wide(inputs())
    assert host.up.dim() == 1
    host.fail = True
    with pytest.raises(RuntimeError, match="as asked"):
        wide(inputs())
    assert host.up.dim() == 1
    assert not {"up", "down", "up_bias", "down_bias"} & vars(host).keys()


def test_gradient_checkpointing_gives_the_same_gradients(wide: Any) -> None:
    wide(inputs()).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in wide.parameters()]
    wide.zero_grad()
    out = torch.utils.checkpoint.checkpoint(wide, inputs(), use_reentrant=False)
    out.square().sum().backward()
    for parameter, gradient in zip(wide.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_copy_is_independent(wide: Any) -> None:
    before = wide(inputs())
    for copied in (copy.deepcopy(wide), pickle.loads(pickle.dumps(wide))):
        assert torch.equal(copied(inputs()), before)
        with torch.no_grad():
            copied.layers[0].up.zero_()
        assert torch.equal(wide(inputs()), before)
        assert not torch.equal(copied(inputs()), before)


def test_state_dict_round_trip_and_casts(wide: Any) -> None:
    other = copy.deepcopy(wide)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(wide.state_dict())
    assert torch.equal(other(inputs()), wide(inputs()))
    assert wide.double()(inputs().double()).dtype == torch.float64


def test_checksums_cover_what_moved_into_the_host(wide: Any) -> None:
    (before, _) = (layer.compute_checksum()[0] for _, layer in fpe_layers(wide))
    with torch.no_grad():
        wide.layers[0].up[0] += 1
    (after, _) = (layer.compute_checksum()[0] for _, layer in fpe_layers(wide))
    assert int(before) != int(after)


def test_a_frozen_parent_stays_frozen() -> None:
    model = Model(None, False, False).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in widened(model).parameters())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"experts": 0}, "experts"),
        ({"transposed": [True]}, "transposed"),
        ({"bias_names": [None, None]}, "bias_names"),
        ({"down": "layers.0.up"}, "differ"),
    ],
)
def test_contradictions_in_a_stored_spec_are_refused(
    wide: Any, changes: dict[str, Any], word: str
) -> None:
    spec = next(fpe_layers(wide))[1].spec
    with pytest.raises(CheckpointError, match=word):
        BlockSpec.from_dict({**spec.to_dict(), **changes})
