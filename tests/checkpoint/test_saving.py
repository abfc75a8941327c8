"""Whatever was widened, what is saved can be loaded: wholes with widened parts, parts of wholes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import (
    AutoModel,
    BertLMHeadModel,
    BertModel,
    CLIPModel,
    EncoderDecoderModel,
    PreTrainedModel,
)

import fpe_hf
from fpe_hf.checkpoint.saving import plan_of
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.errors import CheckpointError
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_config, tiny_inputs, tiny_model
from tiny_moe import logits, tiny_mixture

LAYOUTS = ("element", "block")


def composite() -> Any:
    decoder = tiny_config("bert")
    decoder.is_decoder = decoder.add_cross_attention = True
    torch.manual_seed(0)
    return EncoderDecoderModel(encoder=tiny_model("bert"), decoder=BertLMHeadModel(decoder)).eval()


def assert_loads(model: PreTrainedModel, folder: Path, blocks: int) -> Any:
    """A model loads, in its class and by its config, with its outputs; and saves again."""
    inputs = tiny_inputs(model) if model.config.model_type != "encoder-decoder" else PAIR
    expected = model(**inputs)[0]
    before = dict(vars(model)), model.config.to_dict()
    model.save_pretrained(folder)
    assert vars(model) == before[0]
    assert "quantization_config" in before[1] or not hasattr(model.config, "quantization_config")
    validate_checkpoint(folder)
    loaded = type(model).from_pretrained(folder).eval()
    loaded.save_pretrained(folder / "again")
    again = type(model).from_pretrained(folder / "again").eval()
    for other in (loaded, again):
        assert torch.equal(other(**inputs)[0], expected)
        report = fpe_hf.audit(other, strict=True)
        assert len(report.blocks) == blocks
        assert len({block.name for block in report.blocks}) == blocks
    return loaded


PAIR = {
    "input_ids": torch.arange(3, 15).view(2, 6),
    "decoder_input_ids": torch.arange(20, 28).view(2, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "parts", [["encoder"], ["decoder"], ["encoder", "decoder"], ["decoder.bert"]]
)
def test_a_model_with_widened_parts(parts: list[str], layout: str, tmp_path: Path) -> None:
    model = composite()
    for part in parts:
        fpe_hf.widen(model.get_submodule(part), layout=layout, seed=len(part))
    loaded = assert_loads(model, tmp_path / "whole", 2 * len(parts))
    if "encoder" in parts:
        assert_loads(loaded.encoder, tmp_path / "part", 2)


def test_a_whole_made_of_a_saved_part(tmp_path: Path) -> None:
    fpe_hf.widen(tiny_model("bert"), coupling=1.0, fan_out="partition").save_pretrained(
        tmp_path / "1"
    )
    tiny_model("bert").save_pretrained(tmp_path / "2")
    parts = str(tmp_path / "1"), str(tmp_path / "2")
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(*parts).eval()
    loaded = assert_loads(model, tmp_path / "whole", 2)
    dense = fpe_hf.to_dense(loaded, PAIR)
    assert "quantization_config" not in json.dumps(dense.config.to_dict())
    torch.testing.assert_close(dense(**PAIR)[0], model(**PAIR)[0], rtol=1e-4, atol=1e-4)


def test_parts_widened_alike_stay_apart(tmp_path: Path) -> None:
    model = CLIPModel(tiny_config("clip")).eval()
    for tower in (model.text_model, model.vision_model):
        fpe_hf.widen(tower, coupling=1.0, fan_out="partition")
    loaded = assert_loads(model, tmp_path, 4)
    inputs = tiny_inputs(model)
    dense = fpe_hf.to_dense(loaded)
    torch.testing.assert_close(dense(**inputs)[0], model(**inputs)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_of_a_widened_model(layout: str, tmp_path: Path) -> None:
    model = CLIPModel(tiny_config("clip")).eval()
    fpe_hf.widen(model, layout=layout)
    assert_loads(model, tmp_path / "whole", 4)
    inner = {name: value for name, value in tiny_inputs(model).items() if name != "pixel_values"}
    for folder, text in (
        ("fresh", model),
        ("loaded", CLIPModel.from_pretrained(tmp_path / "whole")),
    ):
        text.text_model.save_pretrained(tmp_path / folder)
        validate_checkpoint(tmp_path / folder)
        loaded = type(text.text_model).from_pretrained(tmp_path / folder).eval()
        assert torch.equal(loaded(**inner)[0], model.text_model(**inner)[0])
        assert len(fpe_hf.audit(loaded, strict=True).blocks) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_layer_that_is_no_model(layout: str, tmp_path: Path) -> None:
    model = tiny_model("bert")
    hidden = torch.randn(1, 4, 32)
    for layer in model.encoder.layer:
        fpe_hf.widen(layer, layout=layout, targets=["*"], example_inputs=(hidden,))
    assert_loads(model, tmp_path, 2)


def test_equal_copies_of_a_part(tmp_path: Path) -> None:
    model = composite()
    fpe_hf.widen(model.encoder)
    model.encoder.encoder.layer[1] = copy.deepcopy(model.encoder.encoder.layer[0])
    assert_loads(model, tmp_path, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_inside_a_module(layout: str, tmp_path: Path) -> None:
    """As in sentence-transformers, which save it by itself."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = tiny_model("bert")

        def forward(self, input_ids: Tensor) -> Tensor:
            output: Tensor = self.encoder(input_ids).last_hidden_state
            return output

    model = Wrapper()
    fpe_hf.widen(model, layout=layout, example_inputs=(torch.arange(8).view(2, 4),))
    assert_loads(model.encoder, tmp_path, 2)


def test_experts_in_a_part(tmp_path: Path) -> None:
    model = tiny_mixture("mixtral")
    expected = logits(model)
    fpe_hf.widen(model.model, coupling=1.0, fan_out="partition")
    model.save_pretrained(tmp_path)
    validate_checkpoint(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    fpe_hf.audit(loaded, strict=True)


def test_a_whole_plan_is_saved_as_it_is(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert_classifier"))
    assert plan_of(model) is model.config.quantization_config
    assert plan_of(tiny_model("bert")) is None
    base = plan_of(model.bert)
    assert base is not None
    assert [spec.here(spec.name) for spec in base.specs] == ["encoder.layer.0", "encoder.layer.1"]


def test_wrappers_and_adapters_do_not_matter(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert"))
    for name in ("0", "1"):
        model.encoder.layer._modules[name] = checkpoint_wrapper(model.encoder.layer[int(name)])
    assert plan_of(model) is model.config.quantization_config
    assert_loads(model, tmp_path / "wrapped", 2)
    model = fpe_hf.widen(tiny_model("bert"))
    model.add_adapter(LoraConfig(target_modules=["query"], modules_to_save=["output.dense"]))
    model.save_pretrained(tmp_path / "adapter")


def test_a_block_that_was_taken_apart_is_not_saved(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert"))
    layer = model.encoder.layer[0]
    layer.output.dense, layer.output.other = nn.Linear(48, 32), layer.output.dense
    with pytest.raises(CheckpointError, match=r"'encoder.layer.0' was taken apart.*away"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_dense_models_save_as_ever(tmp_path: Path) -> None:
    fpe_hf.widen(tiny_model("bert"))
    model = tiny_model("bert")
    model.save_pretrained(tmp_path)
    assert "quantization" not in (tmp_path / "config.json").read_text()
    assert not list(fpe_layers(AutoModel.from_pretrained(tmp_path)))
    assert BertModel.save_pretrained.__name__ == "save_pretrained"
