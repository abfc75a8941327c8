"""torch's parametrizations and pruning of a widened layer work as on a stock one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fpe_hf
from fpe_hf.errors import ExportError
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import tiny_mixture

COMBINATIONS = list(product(["element", "block"], ["replicate", "partition"]))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


class Tripled(nn.Module):
    """Has no inverse."""

    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


REGISTER: dict[str, Callable[[Any], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "doubled": lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
    "tripled": lambda m: parametrize.register_parametrization(m, "weight", Tripled()),
    "bias": lambda m: parametrize.register_parametrization(m, "bias", Doubled()),
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.3),
}


def chain(layout: str, fan_out: str, register: str | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    parent = nn.Sequential(nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 40))
    model: nn.Sequential = fpe_hf.widen(
        parent, example_inputs=(torch.randn(1, 40),), layout=layout, fan_out=fan_out
    )
    if register is not None:
        for layer in (model[0], model[2]):
            REGISTER[register](layer)
    return model


@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_state_dicts_of_changed_layers_load(layout: str, fan_out: str, register: str) -> None:
    model = chain(layout, fan_out, register)
    for x in (torch.randn(1, 40), torch.randn(64, 40)):
        model(x).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    model.eval()  # in training, spectral_norm moves on with every pass
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fresh = chain(layout, fan_out, register).eval()
    fresh.load_state_dict(state)
    x = torch.randn(3, 40)
    assert torch.equal(fresh(x), model(x))
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_what_is_computed_is_computed_by_every_kernel(
    layout: str, fan_out: str, register: str
) -> None:
    model, twin = chain(layout, fan_out, register).eval(), chain(layout, fan_out)
    with torch.no_grad():
        for own, its in zip((model[0], model[2]), (twin[0], twin[2]), strict=True):
            its.weight.copy_(own.weight)
            its.bias.copy_(own.bias)
        for x in (torch.randn(1, 40), torch.randn(3000, 40)):
            torch.testing.assert_close(model(x), twin(x))


@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_a_dense_model_is_made_of_parameters_alone(
    layout: str, fan_out: str, register: str
) -> None:
    with pytest.raises(ExportError, match=r"computed from other tensors.*remove"):
        fpe_hf.to_dense(chain(layout, fan_out, register))


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_once_a_parametrization_is_removed_all_is_as_before(layout: str, fan_out: str) -> None:
    model = chain(layout, fan_out, "weight_norm")
    for layer in (model[0], model[2]):
        parametrize.remove_parametrizations(layer, "weight")
    fpe_hf.audit(model, strict=True)
    fpe_hf.to_dense(model)
    fresh = chain(layout, fan_out)
    fresh.load_state_dict(copy.deepcopy(model).state_dict())
    x = torch.randn(64, 40)
    torch.testing.assert_close(fresh(x), model(x))


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5_gated", "phi3"])
def test_of_every_kind_of_block(family: str, layout: str) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        model = fpe_hf.widen(tiny_model(family), layout=layout).eval()
        for module in list(model.modules()):
            if isinstance(module, fpe_hf.layers.FPELayer):
                REGISTER["doubled"](module)
        return model

    model, fresh = made(), made()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.9
    fresh.load_state_dict(model.state_dict())
    inputs = tiny_inputs(model)
    assert torch.equal(fresh(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("layout", ["element", "block"])
def test_of_experts(layout: str) -> None:
    def made() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        model = fpe_hf.widen(tiny_mixture("mixtral"), layout=layout).eval()
        plain = model(**tiny_inputs(model))[0]
        for name, module in list(model.named_modules()):
            if name.endswith("experts"):
                parametrize.register_parametrization(module, "down_proj", Doubled())
        return model, plain

    (model, plain), (fresh, _) = made(), made()
    inputs = tiny_inputs(model)
    torch.testing.assert_close(model(**inputs)[0], plain)  # its inverse is applied first
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.9
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(**inputs)[0], model(**inputs)[0])
    assert not torch.allclose(model(**inputs)[0], plain)
    with pytest.raises(ExportError, match=r"'.*experts.down_proj' is computed from other tensors"):
        fpe_hf.to_dense(model)
