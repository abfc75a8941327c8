from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    ApertusConfig,
    ApertusModel,
    AutoModelForCausalLM,
    BertModel,
    BloomConfig,
    BloomModel,
    CLIPModel,
    Phi4MultimodalAudioConfig,
    Phi4MultimodalAudioModel,
    PreTrainedModel,
    XmodConfig,
    XmodModel,
)
from transformers.pytorch_utils import Conv1D

import fpe_hf
from checkpoint.fresh import WITHOUT_FPE_HF, check_fresh, difference, outputs_of
from fpe_hf.errors import ConfigError, ExportError
from tiny_models import FAMILIES, tiny_config, tiny_inputs, tiny_model

PARTIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "one layer": ("bert", {"targets": ["encoder.layer.0"]}),
    "alphas": ("llama", {"overrides": {"model.layers.1": {"alpha": 5}}}),
    "fused": ("phi3", {"overrides": {"model.layers.1": {"alpha": 3}}}),
    "fused, one layer": ("modernbert", {"targets": ["*.layers.1.*"], "layout": "block"}),
    "conv1d": ("gpt2", {"targets": ["*.h.1.*"], "alpha": 3}),
    "one stack of two": ("t5", {"targets": ["encoder"]}),
    "one tower of two": ("clip", {"targets": ["vision_model"], "alpha": 3}),
    "alpha per tower": ("whisper", {"overrides": {"model.decoder": {"alpha": 3}}}),
    "a field that is a ratio": ("dinov2", {"overrides": {"*.layer.1.*": {"alpha": 3}}}),
    "a rounded width": ("dinov2_swiglu", {"alpha": 3, "targets": ["*.layer.0.*"]}),
    "layouts": ("vit", {"overrides": {"vit.layers.0": {"layout": "block", "tile_size": 10}}}),
    "an unwidened head": ("siglip", {"targets": ["vision_model"]}),
    "a widened head": ("siglip", {"targets": ["vision_model.head"], "alpha": 3}),
}
"""Blocks of different widths under one field of the config: the narrower get zeros."""


def save_dense(folder: Path, model: PreTrainedModel) -> None:
    """Saves the dense form of a widened model, with what the widened one computes."""
    inputs = tiny_inputs(model)
    case = {"kind": type(model).__name__, "inputs": inputs, "outputs": outputs_of(model, inputs)}
    fpe_hf.to_dense(model).save_pretrained(folder)
    torch.save(case, folder / "case.pt")


@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_every_family_loads_where_fpe_hf_is_not_importable(turn: int, tmp_path: Path) -> None:
    for number, family in enumerate(FAMILIES):
        layout = ("element", "block")[(number + turn) % 2]
        save_dense(tmp_path / family, fpe_hf.widen(tiny_model(family), layout=layout))
    check_fresh(WITHOUT_FPE_HF, tmp_path, "check_cases(folder, tolerance=1e-5)")


def test_partly_widened_models_load_where_fpe_hf_is_not_importable(tmp_path: Path) -> None:
    for number, (family, options) in enumerate(PARTIAL.values()):
        save_dense(tmp_path / str(number), fpe_hf.widen(tiny_model(family), **options))
    check_fresh(WITHOUT_FPE_HF, tmp_path, "check_cases(folder, tolerance=1e-5)")


def test_nothing_in_the_files_is_ours(tmp_path: Path) -> None:
    for family in ("bert", "gpt2", "siglip"):
        save_dense(tmp_path / family, fpe_hf.widen(tiny_model(family)))
        config = (tmp_path / family / "config.json").read_text()
        assert "fpe" not in config
        assert "quantization_config" not in config
        with safe_open(tmp_path / family / "model.safetensors", "pt") as file:
            names = set(file.keys())
        tiny_model(family).save_pretrained(tmp_path / "stock")
        with safe_open(tmp_path / "stock" / "model.safetensors", "pt") as file:
            assert names == set(file.keys())


@pytest.mark.parametrize(
    "options",
    [
        {"coupling": 1.0, "fan_out": "partition"},
        {"coupling": 0.3, "learn_coupling": True, "bias": "child"},
        {"coupling": 0.5, "layout": "block", "tile_size": 7},
    ],
    ids=str,
)
def test_coupling_and_biases_are_in_the_dense_weights(options: dict[str, Any]) -> None:
    for family in ("bert", "phi3"):
        model = fpe_hf.widen(tiny_model(family), alpha=3, **options)
        inputs = tiny_inputs(model)
        dense = fpe_hf.to_dense(model)
        assert difference(outputs_of(dense, inputs), outputs_of(model, inputs)) <= 1e-5


def test_it_is_a_stock_model_of_the_same_class() -> None:
    model = fpe_hf.widen(tiny_model("bert_classifier"), alpha=3)
    dense = fpe_hf.to_dense(model)
    assert type(dense) is type(model)
    assert dense.config.intermediate_size == 3 * 48
    stock = type(dense)(dense.config)
    assert [(n, p.shape) for n, p in dense.named_parameters()] == [
        (n, p.shape) for n, p in stock.named_parameters()
    ]
    assert [type(module) for module in dense.modules()] == [type(m) for m in stock.modules()]
    assert isinstance(
        fpe_hf.to_dense(fpe_hf.widen(tiny_model("gpt2"))).transformer.h[0].mlp.c_fc, Conv1D
    )


def test_narrower_blocks_get_neurons_of_zeros() -> None:
    model = fpe_hf.widen(tiny_model("bert"), overrides={"encoder.layer.1": {"alpha": 4}})
    dense = fpe_hf.to_dense(model)
    up, down = dense.encoder.layer[0].intermediate.dense, dense.encoder.layer[0].output.dense
    assert (up.out_features, down.in_features) == (4 * 48, 4 * 48)
    assert up.weight[:96].count_nonzero() > 0
    assert up.weight[96:].count_nonzero() == up.bias[96:].count_nonzero() == 0
    assert down.weight[:, 96:].count_nonzero() == 0


def test_towers_get_the_widths_they_need() -> None:
    model = fpe_hf.widen(tiny_model("clip"), overrides={"text_model": {"alpha": 3}})
    dense = fpe_hf.to_dense(model)
    assert type(dense) is CLIPModel
    assert dense.config.text_config.intermediate_size == 144
    assert dense.config.vision_config.intermediate_size == 96
    assert dense.vision_model.config.intermediate_size == 96


def test_the_original_is_left_as_it_is() -> None:
    model = fpe_hf.widen(tiny_model("siglip"), targets=["vision_model"]).train()
    inputs = tiny_inputs(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules, config = [id(module) for module in model.modules()], model.config.to_dict()
    dense = fpe_hf.to_dense(model)
    assert [id(module) for module in model.modules()] == modules
    assert model.config.to_dict() == config
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    assert outputs_of(model, inputs)["logits_per_image"].count_nonzero() > 0
    assert {module.training for module in dense.modules()} == {True}


def test_dtype_frozenness_and_ties_are_kept() -> None:
    stock = tiny_model("gpt2").to(torch.bfloat16)
    stock.transformer.h[0].requires_grad_(False)
    dense = fpe_hf.to_dense(fpe_hf.widen(stock))
    assert {parameter.dtype for parameter in dense.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in dense.transformer.h[0].parameters())
    assert all(p.requires_grad for p in dense.transformer.h[1].parameters())
    assert dense.lm_head.weight is dense.transformer.wte.weight


def test_shared_layers_stay_shared() -> None:
    dense = fpe_hf.to_dense(fpe_hf.widen(tiny_model("albert"), alpha=3))
    assert len([name for name, _ in dense.named_parameters() if "ffn.weight" in name]) == 1
    assert dense.config.intermediate_size == 144


def test_a_reloaded_model_is_exported(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("phi3"))
    model.save_pretrained(tmp_path / "fpe")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fpe").eval()
    inputs = tiny_inputs(model)
    fpe_hf.to_dense(loaded).save_pretrained(tmp_path / "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    assert difference(outputs_of(again, inputs), outputs_of(model, inputs)) <= 1e-5
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())


def test_a_dense_model_can_be_widened_again() -> None:
    dense = fpe_hf.to_dense(fpe_hf.widen(tiny_model("bert")))
    again = fpe_hf.widen(dense, coupling=1.0, fan_out="partition")
    assert fpe_hf.audit(again, strict=True).total.children == 2 * 4 * 48


def test_other_modules_are_copied_with_linear_layers() -> None:
    torch.manual_seed(0)
    model = fpe_hf.widen(nn.Sequential(nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 7)), alpha=3)
    dense = fpe_hf.to_dense(model)
    x = torch.randn(4, 20)
    torch.testing.assert_close(dense(x), model(x))
    assert [type(module) for module in dense] == [nn.Linear, nn.GELU, nn.Linear]
    assert dense[0].weight.shape == (90, 20)


def test_a_model_of_another_library_is_copied_whatever_its_config() -> None:
    """diffusers' models have a `config` and `save_pretrained`, too, but no way back from it."""

    class Other(nn.Sequential):
        config: ClassVar = {"width": 30}

        def save_pretrained(self, folder: str) -> None:
            raise NotImplementedError

    model = fpe_hf.widen(Other(nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 7)))
    assert model.config == {"width": 30}
    assert fpe_hf.to_dense(model)[0].weight.shape == (60, 20)


# -- widths that no config reaches ----------------------------------------------------------------


def fixed_widths() -> PreTrainedModel:
    """A model whose class says `4 * hidden_size`."""
    torch.manual_seed(0)
    model: PreTrainedModel = BloomModel(
        BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("fan_out", ["partition", "replicate"])
def test_equal_children_are_merged_also_after_training(
    layout: str, fan_out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = fpe_hf.widen(
        fixed_widths(), alpha=3, coupling=1.0, fan_out=fan_out, layout=layout, tile_size=None
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    dense = fpe_hf.to_dense(model)
    assert "BloomConfig has no field for the hidden widths of 2 blocks" in caplog.text
    assert dense.h[0].mlp.dense_h_to_4h.weight.shape == (64, 16)
    dense.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.arange(12).view(2, 6)}
    expected = outputs_of(model, inputs)
    assert difference(outputs_of(dense, inputs), expected) <= 1e-5
    assert difference(outputs_of(BloomModel.from_pretrained(tmp_path), inputs), expected) <= 1e-5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, r"it is 0\.0"),
        ({"coupling": 1.0, "learn_coupling": True}, "it is learned"),
        ({"coupling": 1.0, "bias": "child"}, "shared bias"),
    ],
)
def test_children_that_differ_are_not_merged(options: dict[str, Any], named: str) -> None:
    model = fpe_hf.widen(fixed_widths(), **options)
    with pytest.raises(ExportError, match=rf"no field of BloomConfig.*{named}"):
        fpe_hf.to_dense(model)


def test_only_blocks_without_a_field_are_merged() -> None:
    """A pooler is as wide as the hidden states; the layers have a field."""
    model = fpe_hf.widen(
        tiny_model("bert_classifier"),
        targets=["bert.pooler.dense", "bert.encoder"],
        coupling=1.0,
        fan_out="partition",
    )
    dense = fpe_hf.to_dense(model)
    assert dense.bert.pooler.dense.out_features == dense.config.hidden_size
    assert dense.config.intermediate_size == 2 * 48
    inputs = tiny_inputs(model)
    assert difference(outputs_of(dense, inputs), outputs_of(model, inputs)) <= 1e-5


def test_a_field_that_sets_one_side_of_a_block_is_left() -> None:
    """Of a convolution block of Phi-4's audio encoder, a field sets the ups, none the down."""
    torch.manual_seed(0)
    config = Phi4MultimodalAudioConfig(
        hidden_size=32,
        intermediate_size=24,
        num_blocks=1,
        num_attention_heads=2,
        ext_pw_out_channel=32,
        depthwise_separable_out_channel=32,
        nemo_conv_channels=32,
        input_size=16,
    )
    inputs = {"hidden_states": torch.randn(2, 32, 16), "mask": torch.ones(2, 32).bool()}
    parent = Phi4MultimodalAudioModel(config).eval()
    model = fpe_hf.widen(parent, coupling=1.0, fan_out="partition", example_inputs=inputs)
    dense = fpe_hf.to_dense(model, inputs)
    assert dense.config.intermediate_size == 2 * 24
    assert dense.config.depthwise_separable_out_channel == 32
    with torch.no_grad():
        torch.testing.assert_close(dense(**inputs), model(**inputs), rtol=1e-5, atol=1e-5)


def test_a_field_that_divides_is_found() -> None:
    """XMOD's adapters have `hidden_size / adapter_reduction_factor` neurons."""
    torch.manual_seed(0)
    config = XmodConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        adapter_reduction_factor=4,
        default_language="en_XX",
    )
    model = fpe_hf.widen(XmodModel(config).eval())
    dense = fpe_hf.to_dense(model)
    assert dense.config.adapter_reduction_factor == 2
    inputs = {"input_ids": torch.arange(4, 16).view(2, 6)}
    assert difference(outputs_of(dense, inputs), outputs_of(model, inputs)) <= 1e-5


def test_a_dtype_that_saving_left_as_a_word_is_read(tmp_path: Path) -> None:
    """`save_pretrained` writes a string into `config.dtype`; some classes build tensors of it."""
    config = ApertusConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
    )
    model = fpe_hf.widen(ApertusModel(config).eval())
    model.save_pretrained(tmp_path)
    assert fpe_hf.to_dense(model).config.intermediate_size == 48


# -- refusals --------------------------------------------------------------------------------------


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no widened block"):
        fpe_hf.to_dense(tiny_model("bert"))


def test_a_width_that_no_field_sets_is_refused() -> None:
    """A pooler is as wide as the hidden states, which the classifier cannot change alone."""
    model = fpe_hf.widen(tiny_model("bert_classifier"), targets=["bert.pooler.dense"])
    with pytest.raises(ExportError, match=r"no field of BertConfig.*bert\.pooler\.dense"):
        fpe_hf.to_dense(model)


def test_a_class_that_fixes_its_widths_is_refused() -> None:
    class Fixed(BertModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in self.encoder.layer:
                layer.intermediate.dense = nn.Linear(32, 20)
                layer.output.dense = nn.Linear(20, 32)

    model = fpe_hf.widen(Fixed(tiny_config("bert")).eval())
    with pytest.raises(ExportError, match="no field of BertConfig"):
        fpe_hf.to_dense(model)
