from __future__ import annotations

import copy
import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel, LlamaForCausalLM, LlamaModel

import fpe_hf
from fpe_hf.errors import ConfigError, DiscoveryError, PlanError, TargetError
from fpe_hf.layers import BlockUp, ElementUp, FPELayer
from fpe_hf.splits import _SPLITS
from tiny_models import FAMILIES, tiny_config, tiny_inputs, tiny_model

LAYOUTS = ("element", "block")
EXACT: dict[str, Any] = {"coupling": 1.0, "fan_out": "partition"}


def outputs_of(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        found = model(**tiny_inputs(model))
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, in units of the largest number of each output (at least 1)."""
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1))
        for name, value in expected.items()
    )


@cache
def projections(family: str) -> frozenset[str]:
    blocks = fpe_hf.find_mlps(tiny_model(family))
    return frozenset(name for block in blocks for name in (*block.ups, block.down))


def parent_nonzeros(model: nn.Module, family: str) -> int:
    """Non-zero weights and all biases of the blocks of a dense model, counted by hand."""
    modules = [model.get_submodule(name) for name in projections(family)]
    weights = sum(int((module.weight != 0).sum()) for module in modules)
    return weights + sum(module.bias.numel() for module in modules if module.bias is not None)


def layer_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, FPELayer)]


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, int], dict[str, Any]]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = {name: id(module) for name, module in model.named_modules()}
    return state, modules, dict(model.config.to_dict())


def assert_untouched(model: nn.Module, before: tuple[Any, ...]) -> None:
    state, modules, config = snapshot(model)
    assert modules == before[1]
    assert config == before[2]
    assert state.keys() == before[0].keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, before[0][name]) or bool(tensor.isnan().any()), name


@pytest.fixture
def failing_split() -> Any:
    """A split that works for the first block and fails at the second."""
    calls = []

    def split(weight: Tensor, alpha: int, *, seed: int, shared: bool) -> Tensor:
        calls.append(seed)
        if len(calls) > 1:
            raise RuntimeError("no division for this block")
        return torch.arange(weight.shape[-1]) % alpha

    fpe_hf.register_split("fails-at-second", split)
    yield "fails-at-second"
    del _SPLITS["fails-at-second"]


# -- what it computes and what it costs ------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_start_keeps_outputs_and_budget(family: str, layout: str) -> None:
    model = tiny_model(family)
    expected, budget = outputs_of(model), parent_nonzeros(model, family)
    assert fpe_hf.widen(model, layout=layout, **EXACT) is model
    assert gap(outputs_of(model), expected) <= 1e-5
    report = fpe_hf.audit(model, strict=True)
    assert report.ok
    assert len(report.blocks) == FAMILIES[family]
    assert report.total.parent_nonzeros == budget
    assert report.total.nonzeros <= budget


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_paper_defaults_spend_the_budget(family: str, layout: str) -> None:
    model = tiny_model(family)
    expected, budget = outputs_of(model), parent_nonzeros(model, family)
    fpe_hf.widen(model, layout=layout)
    report = fpe_hf.audit(model, strict=True)
    assert report.total.parent_nonzeros == budget
    if layout == "element":
        assert [block.nonzeros for block in report.blocks] == [
            block.parent_nonzeros for block in report.blocks
        ]
    assert 0.97 * budget <= report.total.nonzeros <= budget
    assert gap(outputs_of(model), expected) > 1e-4  # a hard split does change what it computes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [2, 3, 5])
def test_exact_start_holds_for_any_alpha_and_tile_size(alpha: int, layout: str) -> None:
    model = tiny_model("llama")
    expected = outputs_of(model)
    tile_size = 7 if layout == "block" else None
    fpe_hf.widen(model, alpha=alpha, layout=layout, tile_size=tile_size, **EXACT)
    assert gap(outputs_of(model), expected) <= 1e-5
    assert {block.children for block in fpe_hf.audit(model).blocks} == {alpha * 48}


@pytest.mark.parametrize("layout", ["element", "auto"])
def test_zeros_of_the_parent_are_not_in_the_budget(layout: str) -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.weight[:, ::2] = 0
    budget = parent_nonzeros(model, "bert")
    fpe_hf.widen(model, layout=layout)
    assert fpe_hf.audit(model, strict=True).total.nonzeros == budget


def test_the_seed_decides() -> None:
    models = [fpe_hf.widen(tiny_model("bert"), seed=seed) for seed in (0, 0, 1)]
    first, again, other = (outputs_of(model) for model in models)
    assert gap(first, again) == 0
    assert gap(first, other) > 1e-4


# -- all or nothing --------------------------------------------------------------------------------


def test_a_failing_split_leaves_the_model_as_it_was(failing_split: str) -> None:
    model = tiny_model("bert")
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no division"):
        fpe_hf.widen(model, split=failing_split)
    assert_untouched(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_leaves_the_model_as_it_was(value: float) -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 4] = value
    before = snapshot(model)
    with pytest.raises(PlanError, match=r"encoder\.layer\.1.*not finite"):
        fpe_hf.widen(model)
    assert_untouched(model, before)


def test_an_alpha_too_large_for_one_block_leaves_the_model_as_it_was() -> None:
    model = tiny_model("bert")
    before = snapshot(model)
    with pytest.raises(PlanError, match=r"encoder\.layer\.1.*32 inputs.*alpha=33"):
        fpe_hf.widen(model, overrides={"encoder.layer.1": {"alpha": 33}})
    assert_untouched(model, before)


# -- refusals --------------------------------------------------------------------------------------


def test_widening_twice_is_refused() -> None:
    model = fpe_hf.widen(tiny_model("bert"))
    before = snapshot(model)
    with pytest.raises(ConfigError, match="already widened"):
        fpe_hf.widen(model)
    assert_untouched(model, before)


def test_a_quantized_model_is_refused() -> None:
    model = tiny_model("bert")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ConfigError, match="quantized"):
        fpe_hf.widen(model)
    assert not layer_names(model)


def test_a_model_without_weights_is_refused() -> None:
    with torch.device("meta"):
        model = BertModel(tiny_config("bert"))
    with pytest.raises(PlanError, match="meta device"):
        fpe_hf.widen(model)
    assert not layer_names(model)


def test_a_model_without_mlps_is_refused() -> None:
    with pytest.raises(DiscoveryError, match="no MLP block"):
        fpe_hf.widen(nn.Sequential(nn.Linear(4, 4)))


def test_near_misses_are_named_when_nothing_is_found() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(DiscoveryError, match=r"LayerNorm|layer_norm"):
        fpe_hf.widen(model)


def test_a_config_typo_is_refused_before_the_model_is_run() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'fan_out'"):
        fpe_hf.widen(tiny_model("bert"), fanout="partition")


def test_a_typo_in_targets_suggests_the_right_name() -> None:
    model = tiny_model("bert")
    with pytest.raises(TargetError, match=r"Did you mean 'encoder\.layer\.0"):
        fpe_hf.widen(model, targets=["encoder.layers.0"])
    assert not layer_names(model)


# -- what is logged --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "notice"),
    [
        ("some/model", {}, "children see parts"),
        ("some/model", {"layout": "block", "coupling": 1.0}, 'fan_out="replicate" copies'),
        ("some/model", {**EXACT, "overrides": {"*.layer.0": {"coupling": 0.5}}}, "children see"),
        ("some/model", {**EXACT, "bias": "child"}, 'pays for bias="child"'),
        ("some/model", {**EXACT, "learn_coupling": True}, "pays for the learned couplings"),
        ("some/model", {"open": True}, "children see parts"),
        ("some/model", {"split": "learned"}, None),
        ("some/model", EXACT, None),
        ("", {}, None),
    ],
    ids=[
        *("pretrained", "replicate", "one-block", "child", "learned-coupling", "open"),
        *("learned-split", "exact-start", "from-scratch"),
    ],
)
def test_pretrained_models_get_a_notice_of_one_line(
    source: str, options: dict[str, Any], notice: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("bert")
    model.name_or_path = source
    with caplog.at_level(logging.INFO, "fpe_hf"):
        fpe_hf.widen(model, **options)
    lines = [record.getMessage() for record in caplog.records if record.name == "fpe_hf"]
    assert len(lines) == (notice is not None)
    for line in lines:
        assert "\n" not in line
        assert str(notice) in line
        assert 'split="learned" starts exactly' in line  # which is not what they have
        assert "coupling=1.0" not in line


@pytest.mark.parametrize("alpha", [1, 2])
def test_the_notice_on_an_open_model_names_what_can_be_open(
    alpha: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("bert").eval()
    model.name_or_path = "some/model"
    tokens = torch.arange(6)[None]
    before = model(tokens).last_hidden_state
    fpe_hf.widen(model, alpha=alpha, budget=0.9, open=True)
    exact = torch.allclose(model(tokens).last_hidden_state, before, atol=1e-5)
    assert exact == (alpha == 1)
    assert exact or 'split="learned" starts exactly' in caplog.messages[-1]
    assert not exact or not caplog.messages


# -- what stays as it was --------------------------------------------------------------------------


def test_frozen_projections_stay_frozen() -> None:
    model = tiny_model("bert")
    model.encoder.layer[0].requires_grad_(False)
    fpe_hf.widen(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert frozen == {name for name, _ in model.named_parameters() if "encoder.layer.0." in name}


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training: bool) -> None:
    model = tiny_model("bert").train(training)
    fpe_hf.widen(model)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    model = fpe_hf.widen(tiny_model("bert").to(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_everything_outside_the_blocks_is_the_same_object() -> None:
    model = tiny_model("llama")
    before = dict(model.named_parameters())
    fpe_hf.widen(model)
    after = dict(model.named_parameters())
    kept = [name for name in before if ".mlp." not in name]
    assert kept
    assert all(after[name] is before[name] for name in kept)
    assert {name.rpartition(".")[0] for name in after if ".mlp." in name} == {
        f"model.layers.{layer}.mlp.{name}"
        for layer in range(2)
        for name in ("gate_proj", "up_proj", "down_proj")
    }


def test_shared_layers_stay_shared() -> None:
    model = fpe_hf.widen(tiny_model("albert"))
    assert len(layer_names(model)) == 2
    module = nn.ModuleDict({"a": (shared := nn.Linear(8, 16)), "b": nn.Linear(16, 8)})
    module["c"] = shared

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = module

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.parts["b"](self.parts["a"](x).relu())
            return x + self.parts["b"](self.parts["c"](x).relu())

    twice = fpe_hf.widen(Twice(), alpha=2, layout="element")
    assert twice.parts["a"] is twice.parts["c"]
    assert isinstance(twice.parts["a"], ElementUp)


# -- which blocks, and how -------------------------------------------------------------------------


def test_targets_and_exclude() -> None:
    model = fpe_hf.widen(tiny_model("clip"), targets=["text_model"], exclude=["*.layers.1.*"])
    names = layer_names(model)
    assert names == [f"text_model.encoder.layers.0.mlp.{name}" for name in ("fc1", "fc2")]
    assert len(model.config.quantization_config.blocks) == 1


def test_overrides_mix_alphas_and_layouts() -> None:
    model = tiny_model("bert")
    expected = outputs_of(model)
    overrides = {
        "encoder.layer.0": {"alpha": 4, "layout": "element"},
        "encoder.layer.1": {"layout": "block", "tile_size": 12},
    }
    fpe_hf.widen(model, overrides=overrides, **EXACT)
    first, second = fpe_hf.audit(model, strict=True).blocks
    assert (first.alpha, first.layout) == (4, "element")
    assert (second.alpha, second.layout) == (2, "block")
    assert isinstance(model.encoder.layer[0].intermediate.dense, ElementUp)
    assert isinstance(model.encoder.layer[1].intermediate.dense, BlockUp)
    assert gap(outputs_of(model), expected) <= 1e-5


@pytest.mark.parametrize("family", ["bert", "llama", "clip"])
def test_a_config_that_other_models_share_is_not_marked(family: str, tmp_path: Path) -> None:
    dense = tiny_model(family)
    other = type(dense)(dense.config)
    before = dense.config.to_dict()
    fpe_hf.widen(other)
    assert dense.config.to_dict() == before
    dense.save_pretrained(tmp_path)
    loaded = type(dense).from_pretrained(tmp_path)
    assert all(map(torch.equal, loaded.state_dict().values(), dense.state_dict().values()))
    fpe_hf.widen(dense)
    configs = [
        own for m in other.modules() for own in vars(m).values() if type(own) is type(other.config)
    ]
    assert all(own is other.config for own in configs)


def test_config_and_overrides_of_single_fields() -> None:
    config = fpe_hf.FPEConfig(alpha=4, layout="block")
    model = fpe_hf.widen(tiny_model("bert"), config, alpha=3)
    assert {(block.alpha, block.layout) for block in fpe_hf.audit(model).blocks} == {(3, "block")}
    assert config.alpha == 4
    assert model.config.quantization_config.config["alpha"] == 3


def test_pooler_and_classifier_only_on_request() -> None:
    names = ["bert.pooler.dense", "classifier"]
    model = tiny_model("bert_classifier")
    expected = outputs_of(model)
    assert not set(names) & set(layer_names(fpe_hf.widen(copy.deepcopy(model))))
    fpe_hf.widen(model, targets=["bert.pooler.dense"], **EXACT)
    assert layer_names(model) == names
    assert gap(outputs_of(model), expected) <= 1e-5


# -- other modules ---------------------------------------------------------------------------------


class Net(nn.Module):
    """A small convolutional network with an MLP head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten())
        self.up, self.down = nn.Linear(4 * 13 * 13, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(self.features(images)).relu())
        return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sequential_is_widened(layout: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 7))
    x = torch.randn(5, 20)
    expected = model(x)
    fpe_hf.widen(model, layout=layout, **EXACT)
    assert layer_names(model) == ["0", "2"]
    torch.testing.assert_close(model(x), expected)
    assert fpe_hf.audit(model, strict=True).total.nonzeros == 20 * 30 + 30 + 30 * 7 + 7


def test_the_mlp_head_of_a_cnn_is_widened() -> None:
    torch.manual_seed(0)
    model = Net()
    images = torch.randn(2, 1, 28, 28)
    expected = model(images)
    fpe_hf.widen(model, **EXACT)
    assert layer_names(model) == ["up", "down"]
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


# -- from a folder ---------------------------------------------------------------------------------


def test_a_folder_is_loaded_as_the_class_its_config_names(tmp_path: Path) -> None:
    stock = tiny_model("llama")
    stock.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model = fpe_hf.widen(tmp_path, **EXACT)
    assert type(model) is LlamaForCausalLM
    assert gap(outputs_of(model), outputs_of(stock)) <= 1e-5
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert type(fpe_hf.widen(str(tmp_path), alpha=4)) is LlamaForCausalLM


def test_a_folder_without_a_known_architecture_is_loaded_by_auto_model(tmp_path: Path) -> None:
    stock = tiny_model("llama").model
    stock.config.architectures = ["os.system"]
    stock.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace("LlamaModel", "os.system")
    (tmp_path / "config.json").write_text(config)
    assert type(fpe_hf.widen(tmp_path)) is LlamaModel


def test_a_folder_with_a_widened_model_is_refused(tmp_path: Path) -> None:
    fpe_hf.widen(tiny_model("bert")).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="already widened"):
        fpe_hf.widen(tmp_path)
