from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPVisionModel,
    LlamaForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

import fpe_hf
from checkpoint.fresh import (
    FPE_HF_FIRST,
    TRANSFORMERS_FIRST,
    check_cases,
    check_fresh,
    outputs_of,
    run_fresh,
    save_case,
)
from fpe_hf.checkpoint.loading import load_model
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.errors import ConfigError
from fpe_hf.modules import fpe_layers
from tiny_models import FAMILIES, tiny_config, tiny_inputs, tiny_model

LAYOUTS = ("element", "block")
WAYS: dict[str, dict[str, Any]] = {
    "exact": {"coupling": 1.0, "fan_out": "partition"},
    "learned": {"coupling": 0.5, "learn_coupling": True, "bias": "child", "alpha": 3},
    "table": {"split": "feature"},
    "tiles": {"layout": "block", "fan_out": "partition", "tile_size": 7, "alpha": 3},
    "tiles, learned": {"layout": "block", "tile_size": 20, "learn_coupling": True},
    "mixed": {"overrides": {"*.0.*": {"layout": "block"}, "*.1.*": {"alpha": 5}}},
}


def in_bfloat16(model: nn.Module) -> nn.Module:
    """What `from_pretrained(dtype=bfloat16)` gives: parameters rounded, buffers as they were."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def inputs_for(model: Any) -> dict[str, Tensor]:
    inputs = tiny_inputs(model)
    return {n: t.to(model.dtype) if t.is_floating_point() else t for n, t in inputs.items()}


# -- in a fresh process ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "imports"), [("element", TRANSFORMERS_FIRST), ("block", FPE_HF_FIRST)], ids=LAYOUTS
)
@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_every_family_is_bit_identical(
    layout: str, imports: str, turn: int, tmp_path: Path
) -> None:
    for family in list(FAMILIES)[(LAYOUTS.index(layout) + turn) % 2 :: 2]:
        model = fpe_hf.widen(tiny_model(family), layout=layout)
        save_case(tmp_path / family, model, inputs_for(model))
        assert validate_checkpoint(tmp_path / family).model_class == type(model).__name__
    calls = "check_cases(folder); check_cases(folder, base=True)"
    check_fresh(imports, tmp_path, calls)


def test_every_way_to_widen_is_bit_identical(tmp_path: Path) -> None:
    for name, options in WAYS.items():
        for family in ("bert_classifier", "phi3", "gpt2"):
            model = fpe_hf.widen(tiny_model(family), **options)
            save_case(tmp_path / f"{family} {name}", model, inputs_for(model))
    for layout in LAYOUTS:
        for family in ("bert", "llama", "t5", "clip", "dinov2_swiglu"):
            model = fpe_hf.widen(in_bfloat16(tiny_model(family)), layout=layout)
            save_case(tmp_path / f"{family} {layout} bfloat16", model, inputs_for(model))
    check_fresh(FPE_HF_FIRST, tmp_path)


def test_files_with_int16_indices_load(tmp_path: Path) -> None:
    """Older versions wrote them up to 32,768 inputs."""
    config = BertConfig(
        vocab_size=96,
        hidden_size=260,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model = fpe_hf.widen(BertModel(config), layout="block", fan_out="partition")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = {
        name: tensor.short() if tensor.dtype == torch.int32 else tensor
        for name, tensor in load_file(file).items()
    }
    assert torch.int16 in {tensor.dtype for tensor in state.values()}
    save_file(state, file, metadata={"format": "pt"})
    validate_checkpoint(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path)
    assigned = copy.deepcopy(model)
    assigned.load_state_dict(state, assign=True)
    for other in (loaded, assigned):
        assert torch.int16 not in {buffer.dtype for buffer in other.buffers()}
        assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


def test_without_fpe_hf_transformers_fails_loudly(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        for family in ("bert_classifier", "gpt2", "phi3"):
            model = fpe_hf.widen(tiny_model(family), layout=layout)
            model.save_pretrained(tmp_path / f"{family} {layout}")
    code = """
import sys
from transformers import AutoModel
for folder in sys.argv[1:]:
    try:
        AutoModel.from_pretrained(folder)
    except RuntimeError as error:
        print(type(error).__name__, error)
    else:
        sys.exit(f"{folder} was loaded")
assert "fpe_hf" not in sys.modules
"""
    result = run_fresh(code, *tmp_path.iterdir())
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("mismatch") == 6


# -- shards, devices, dtypes -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_and_placed(layout: str, tmp_path: Path) -> None:
    for family in ("bert_classifier", "gpt2", "llama"):
        model = fpe_hf.widen(tiny_model(family), layout=layout)
        save_case(tmp_path / family, model, inputs_for(model), max_shard_size="20KB")
        files = list((tmp_path / family).glob("*.safetensors"))
        assert len(files) > 3
        assert len(validate_checkpoint(tmp_path / family).files) == len(files)
    check_cases(tmp_path)
    check_cases(tmp_path, device_map="cpu")
    check_cases(tmp_path, device_map={"": "cpu"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_offloaded_to_disk(layout: str, tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert_classifier"), layout=layout, learn_coupling=True)
    expected = outputs_of(model, inputs_for(model))
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("bert.embeddings", "bert.pooler", "classifier"), "cpu")
    places |= {"bert.encoder.layer.0": "disk", "bert.encoder.layer.1": "cpu"}
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offloaded")
    ).eval()
    assert loaded.bert.encoder.layer[0].output.dense.weight.is_meta
    found = outputs_of(loaded, inputs_for(model))
    # The hooks that bring in its weights keep an MLP from running as one operation.
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(outputs_of(again, inputs_for(model))["logits"], expected["logits"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_files_load_as_bfloat16(layout: str, tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("llama"), layout=layout, learn_coupling=True, coupling=1.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    expected = outputs_of(in_bfloat16(copy.deepcopy(model)), inputs_for(model))
    assert torch.equal(outputs_of(loaded, inputs_for(model))["logits"], expected["logits"])
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.dtype == torch.bfloat16
    assert torch.equal(outputs_of(again, inputs_for(model))["logits"], expected["logits"])


# -- classes ---------------------------------------------------------------------------------------


def test_head_and_base_classes_load_each_other(tmp_path: Path) -> None:
    head = fpe_hf.widen(tiny_model("bert_classifier"))
    inputs = inputs_for(head)
    head.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head").eval()
    assert type(base) is BertModel
    expected = outputs_of(head.bert, inputs)
    assert torch.equal(outputs_of(base, inputs)["pooler_output"], expected["pooler_output"])
    base.save_pretrained(tmp_path / "base")
    assert validate_checkpoint(tmp_path / "base").model_class == "BertModel"
    again = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5).eval()
    assert torch.equal(outputs_of(again.bert, inputs)["pooler_output"], expected["pooler_output"])
    assert fpe_hf.audit(again, strict=True).total == fpe_hf.audit(head).total
    again.save_pretrained(tmp_path / "again")
    assert validate_checkpoint(tmp_path / "again").model_class == "BertForSequenceClassification"


def test_a_tower_loaded_alone_fails_loudly(tmp_path: Path) -> None:
    """`CLIPVisionModel` sees only the vision part of the config, where the plan is not."""
    fpe_hf.widen(tiny_model("clip")).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        CLIPVisionModel.from_pretrained(tmp_path)


def test_a_tower_widened_alone_loads(tmp_path: Path) -> None:
    stock = tiny_model("clip")
    stock.save_pretrained(tmp_path / "clip")
    tower = fpe_hf.widen(CLIPVisionModel.from_pretrained(tmp_path / "clip").eval())
    tower.save_pretrained(tmp_path / "tower")
    loaded = CLIPVisionModel.from_pretrained(tmp_path / "tower").eval()
    pixels = {"pixel_values": inputs_for(stock)["pixel_values"]}
    expected, found = outputs_of(tower, pixels), outputs_of(loaded, pixels)
    assert torch.equal(found["pooler_output"], expected["pooler_output"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_text_model_of_a_vision_language_checkpoint_stands_alone(
    layout: str, tmp_path: Path
) -> None:
    """transformers renames its tensors, `model.language_model.` to `model.`."""
    text = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 4}
    vision |= {"out_hidden_size": 32, "patch_size": 4, "num_position_embeddings": 16}
    layers = {"layer_types": ["full_attention"] * 2}
    config = Qwen3_5Config(text_config={**text, **layers}, vision_config=vision)
    model = fpe_hf.widen(Qwen3_5ForConditionalGeneration(config).eval(), layout=layout)
    ids = torch.arange(3, 13)[None]
    expected = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "whole")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert type(alone).__name__ == "Qwen3_5ForCausalLM"
    alone.save_pretrained(tmp_path / "alone")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "alone")
    validate_checkpoint(tmp_path / "alone")
    for text_model in (alone, again):
        assert len(fpe_hf.audit(text_model, strict=True).blocks) == 2
        assert torch.equal(text_model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_ties_of_the_output_embeddings_survive(tied: bool, tmp_path: Path) -> None:
    config = tiny_config("llama")
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = fpe_hf.widen(LlamaForCausalLM(config).eval())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    expected = outputs_of(model, inputs_for(model))
    assert torch.equal(outputs_of(loaded, inputs_for(model))["logits"], expected["logits"])
    assert validate_checkpoint(tmp_path).model_class == "LlamaForCausalLM"


def test_tied_gpt2_stays_tied(tmp_path: Path) -> None:
    fpe_hf.widen(tiny_model("gpt2")).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys())


# -- what a loaded model is ------------------------------------------------------------------------


def test_a_loaded_model_is_an_ordinary_one(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert"))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert getattr(loaded, "hf_quantizer", None) is None
    assert not loaded.is_quantized
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    assert loaded.config.quantization_config.to_dict() == model.config.quantization_config.to_dict()
    own, other = model.state_dict(), loaded.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert fpe_hf.audit(loaded, strict=True) == fpe_hf.audit(model)
    buffers = [dict(layer.named_buffers()) for _, layer in fpe_layers(loaded)]
    for (_, layer), found in zip(fpe_layers(model), buffers, strict=True):
        assert all(torch.equal(found[name], tensor) for name, tensor in layer.named_buffers())


def test_saving_again_writes_the_same_bytes(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        first, second = tmp_path / layout / "first", tmp_path / layout / "second"
        fpe_hf.widen(tiny_model("modernbert"), layout=layout).save_pretrained(first)
        load_model(first).save_pretrained(second)
        for name in ("model.safetensors", "config.json"):
            assert (second / name).read_bytes() == (first / name).read_bytes()


def test_the_config_file_holds_the_plan_in_json(tmp_path: Path) -> None:
    overrides = {"encoder.layer.0": {"layout": "block"}}
    model = fpe_hf.widen(tiny_model("bert"), layout="element", overrides=overrides)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored == model.config.quantization_config.to_dict()
    assert sorted(stored) == [
        "blocks",
        "config",
        "format_version",
        "fpe_hf_version",
        "quant_method",
    ]
    assert (stored["quant_method"], stored["format_version"]) == ("fpe", 3)
    assert fpe_hf.FPEConfig.from_dict(stored["config"]).alpha == 2
    assert [block["layout"] for block in stored["blocks"]] == ["block", "element"]


def test_a_model_that_was_not_widened_cannot_be_widened_while_loading(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    plan = fpe_hf.widen(tiny_model("bert")).config.quantization_config
    with pytest.raises(ConfigError, match=r"call fpe_hf\.widen"):
        AutoModel.from_pretrained(tmp_path, quantization_config=plan)


# -- size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 0.07),
        ({"split": "feature"}, 0.07),
        ({"fan_out": "partition", "coupling": 1.0}, 0.01),
        ({"layout": "block"}, 0.01),
        ({"layout": "block", "fan_out": "partition", "coupling": 1.0}, 0.01),
    ],
    ids=str,
)
def test_size_on_disk(options: dict[str, Any], limit: float, tmp_path: Path) -> None:
    """At BERT-small's shapes, in bfloat16; the header of the file is not counted."""
    config = BertConfig(
        vocab_size=8, hidden_size=384, intermediate_size=1536, num_hidden_layers=2,
        num_attention_heads=12, max_position_embeddings=8,
    )  # fmt: skip
    model = BertModel(config).to(torch.bfloat16)
    fpe_hf.widen(model, **options).save_pretrained(tmp_path)
    parent = 2 * 2 * (384 * 1536 + 1536 + 1536 * 384 + 384)
    written = 0
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if ".intermediate." in name or (".output." in name and "attention" not in name):
                tensor = file.get_tensor(name)
                written += 0 if "LayerNorm" in name else tensor.numel() * tensor.element_size()
    assert parent * 0.99 < written <= parent * (1 + limit)
    assert written == fpe_hf.audit(model).total.disk_bytes
