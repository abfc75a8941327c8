"""Replaced projections keep what others put on them, or are refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fpe_hf
from fpe_hf.errors import DiscoveryError
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import tiny_mixture

LAYOUTS = ("element", "block")
FAMILIES = ("bert", "gpt2", "t5_gated", "phi3")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 32))


def widened(model: nn.Module, layout: str = "element", **options: Any) -> nn.Module:
    return fpe_hf.widen(model, example_inputs=(torch.randn(1, 32),), layout=layout, **options)


def bitfit(model: nn.Module) -> dict[str, bool]:
    """Freezes all but the biases."""
    flags = {name: name.endswith("bias") for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    return flags


def flags_of(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("learning", ["bias", "weight"])
def test_each_parameter_learns_as_before(layout: str, family: str, learning: str) -> None:
    model = tiny_model(family)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(learning))
    before = flags_of(model)
    fpe_hf.widen(model, layout=layout, coupling=1.0, fan_out="partition")
    assert flags_of(model) == before
    assert flags_of(fpe_hf.to_dense(model)) == before


def test_each_parameter_of_experts_learns_as_before() -> None:
    model = tiny_mixture("gpt_oss")
    before = bitfit(model)
    fpe_hf.widen(model, coupling=1.0, fan_out="partition")
    assert flags_of(model) == before
    assert flags_of(fpe_hf.to_dense(model)) == before


def test_hooks_on_gradients_of_experts_are_refused_by_name() -> None:
    model = tiny_mixture("gpt_oss")
    model.model.layers[0].mlp.experts.down_proj.register_hook(print)
    found = fpe_hf.find_mlps(model)
    assert any("down_proj has hooks on its gradient" in miss.reason for miss in found.near_misses)


def test_coupling_learns_with_the_weight() -> None:
    for frozen in (False, True):
        model = mlp()
        model[0].weight.requires_grad_(not frozen)
        widened(model, learn_coupling=True)
        assert model[0].coupling.requires_grad is not frozen


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [0, 2])
def test_hooks_are_kept_and_can_be_removed(layout: str, place: int) -> None:
    model, seen = mlp(), []
    x = torch.randn(5, 32, requires_grad=True)

    def note(what: str, module: nn.Module, *args: Any) -> None:
        seen.append((what, type(module).__name__, [type(t) for t in args[0]]))

    kinds = ["forward", "forward_pre", "full_backward", "full_backward_pre"]
    handles = [
        getattr(model[place], f"register_{kind}_hook")(partial(note, kind)) for kind in kinds
    ]
    model[place].register_forward_hook(lambda module, args, output: output * 2)
    expected = copy.deepcopy(model)(x)
    seen.clear()
    widened(model, layout, coupling=1.0, fan_out="partition")
    assert not seen, "hooks see nothing of fake tensors"
    dense = fpe_hf.to_dense(model)
    assert not seen
    for other in (model, dense):
        output = other(x)
        torch.testing.assert_close(output, expected)
        output.sum().backward()
        assert {what for what, *_ in seen} == set(kinds)
        assert {kind for _, kind, _ in seen} == {type(other[place]).__name__}
        assert all(issubclass(t, Tensor) for *_, types in seen for t in types)
        seen.clear()
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert not seen


@pytest.mark.parametrize("where", ["", "0", "1"])
def test_hooks_anywhere_see_no_fake_tensors(where: str) -> None:
    model, seen = mlp(), []
    module = model.get_submodule(where)
    module.register_forward_hook(lambda *args: seen.append(args))
    module.register_forward_pre_hook(lambda *args: seen.append(args))
    fpe_hf.find_mlps(model, (torch.randn(1, 32),))
    assert not seen
    model(torch.randn(1, 32))
    assert len(seen) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tags_are_kept(layout: str) -> None:
    model = mlp()
    model[0].layer_idx, model[0].is_ours = 7, True
    model[0].weight.no_weight_decay = True
    model[2].bias.rate = 0.1
    widened(model, layout)
    for other in (model, copy.deepcopy(model), fpe_hf.to_dense(model)):
        assert (other[0].layer_idx, other[0].is_ours) == (7, True)
    for other in (model, fpe_hf.to_dense(model)):
        assert other[0].weight.no_weight_decay is True
        assert not hasattr(other[0].bias, "no_weight_decay")
        assert other[2].bias.rate == 0.1


def test_to_dense_leaves_stock_modules() -> None:
    dense = fpe_hf.to_dense(widened(mlp(), "block"))
    for place in (0, 2):
        assert type(dense[place]) is nn.Linear
        assert vars(dense[place]).keys() == vars(nn.Linear(1, 1)).keys()


def test_hooks_of_accelerate_are_kept() -> None:
    model = dispatch_model(tiny_model("bert"), {"": "cpu"}, force_hooks=True)
    inputs = tiny_inputs(model)
    expected = model(**inputs)[0]
    hooked = {name for name, module in model.named_modules() if hasattr(module, "_hf_hook")}
    fpe_hf.widen(model, coupling=1.0, fan_out="partition")
    assert {name for name, _ in fpe_layers(model)} <= hooked
    assert all(hasattr(layer, "_hf_hook") for _, layer in fpe_layers(model))
    torch.testing.assert_close(model(**inputs)[0], expected)


def parametrized(linear: nn.Linear) -> None:
    parametrizations.weight_norm(linear)


def exchanged(linear: nn.Linear) -> None:
    linear.forward = lambda x: 2 * nn.Linear.forward(linear, x)


REFUSED: dict[str, tuple[Callable[[nn.Linear], Any], str]] = {
    "parametrization": (parametrized, "parametrizations"),
    "weight norm": (torch.nn.utils.weight_norm, "computed"),
    "pruned weight": (lambda linear: prune.random_unstructured(linear, "weight", 0.5), "computed"),
    "pruned bias": (lambda linear: prune.random_unstructured(linear, "bias", 0.5), "computed"),
    "gradient hook": (lambda linear: linear.weight.register_hook(print), "0.weight has hooks"),
    "step in backward": (
        lambda linear: linear.bias.register_post_accumulate_grad_hook(print),
        "0.bias has hooks on its gradient",
    ),
    "state dict hook": (
        lambda linear: linear.register_state_dict_post_hook(lambda *args: None),
        "0 has hooks on its state dict",
    ),
    "load hook": (
        lambda linear: linear.register_load_state_dict_pre_hook(lambda *args: None),
        "0 has hooks on its state dict",
    ),
    "forward": (exchanged, "forward of 0 was exchanged"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(what: str) -> None:
    model = mlp()
    add, message = REFUSED[what]
    add(model[0])
    with pytest.raises(DiscoveryError, match=message):
        widened(model)
    assert not list(fpe_layers(model))
