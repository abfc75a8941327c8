"""Other people's tools with a widened model, most of them by its name on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertTokenizerFast,
    PreTrainedModel,
    ViTImageProcessor,
    pipeline,
)

import fpe_hf
from fpe_hf.modules import fpe_layers
from hub.server import Hub
from tiny_models import tiny_inputs, tiny_model

NAME = "user/name"
LAYOUTS = ["element", "block"]


def test_image_classification_pipeline(hub: Hub) -> None:
    model = fpe_hf.widen(tiny_model("vit"), layout="block")
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    fpe_hf.push_to_hub(model, NAME, processor=processor)
    from PIL import Image

    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(256, size=(16, 16, 3), dtype=np.uint8))
    found = pipeline("image-classification", model=NAME)(image, top_k=5)
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits
    expected = logits.softmax(-1)[0].sort(descending=True)
    assert [answer["label"] for answer in found] == [f"LABEL_{i}" for i in expected.indices]
    assert [answer["score"] for answer in found] == pytest.approx(expected.values.tolist())


def test_fill_mask_pipeline(hub: Hub, tokenizer: BertTokenizerFast) -> None:
    model = fpe_hf.widen(tiny_model("bert_masked_lm"))
    fpe_hf.push_to_hub(model, NAME, processor=tokenizer)
    found = pipeline("fill-mask", model=NAME)("the cat [MASK] on the mat", top_k=3)
    with torch.no_grad():
        logits = model(**tokenizer("the cat [MASK] on the mat", return_tensors="pt")).logits
    expected = logits[0, 3].softmax(-1).topk(3)
    assert [answer["token"] for answer in found] == expected.indices.tolist()
    assert [answer["score"] for answer in found] == pytest.approx(expected.values.tolist())


def test_generation(hub: Hub) -> None:
    model: Any = fpe_hf.widen(tiny_model("llama"))
    fpe_hf.push_to_hub(model, NAME)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    inputs = tiny_inputs(model)
    loaded: Any = fpe_hf.from_pretrained(NAME)
    assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))


def test_sentence_transformers(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    widened = fpe_hf.widen(tiny_model("bert"))
    widened.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    encoder = Transformer(str(tmp_path / "encoder"))
    pooling = Pooling(widened.config.hidden_size, "mean")
    model = sentence_transformers.SentenceTransformer(modules=[encoder, pooling], device="cpu")
    sentences = ["the cat sat", "a mat"]
    found = model.encode(sentences)
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        hidden = widened(**inputs).last_hidden_state
    expected = (hidden * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)

    model.save_pretrained(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert [name for name, _ in fpe_layers(again)]
    np.testing.assert_array_equal(again.encode(sentences), found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_refuses_widened_layers(layout: str) -> None:
    """PEFT knows no widened layer and says so; `tests/integration` has LoRA on attention."""
    from peft import LoraConfig, get_peft_model

    for wanted, message in (
        ({"target_modules": ["q_proj", "up_proj"]}, "Target module .*Up.* is not supported"),
        ({"target_parameters": ["mlp.up_proj.weight"]}, "1 dimensional Parameter"),
    ):
        model = fpe_hf.widen(tiny_model("llama"), layout=layout)
        with pytest.raises(ValueError, match=message):
            get_peft_model(model, LoraConfig(r=2, **wanted))


def test_an_adapter_finds_the_widened_model_or_nothing_but_never_the_parent(
    tmp_path: Path,
) -> None:
    """It loads its base by the name that the model goes by."""
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    tiny_model("llama").save_pretrained(tmp_path / "dense")
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    get_peft_model(fpe_hf.widen(fresh), lora).save_pretrained(tmp_path / "lost")
    with pytest.raises(OSError):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lost")

    fpe_hf.widen(str(tmp_path / "dense")).save_pretrained(tmp_path / "widened")
    loaded = fpe_hf.from_pretrained(tmp_path / "widened")
    get_peft_model(loaded, lora).save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert len(list(fpe_layers(again))) == 6


def test_an_adapter_may_train_widened_layers_whole(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = fpe_hf.widen(tiny_model("llama"))
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["up_proj"])
    model = get_peft_model(base, config)
    inputs = tiny_inputs(base)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        fpe_hf.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    assert torch.equal(logits(again.eval(), inputs), logits(model, inputs))
    assert fpe_hf.audit(again.merge_and_unload(), strict=True).ok


@pytest.mark.parametrize(
    "form", ["dense", "block", pytest.param("element", marks=pytest.mark.slow)]
)
def test_torch_export(form: str) -> None:
    layout = "block" if form == "block" else "element"
    model = fpe_hf.widen(tiny_model("vit"), layout=layout)
    if form == "dense":
        model = fpe_hf.to_dense(model)
    inputs = tiny_inputs(model)
    program = torch.export.export(model, (), inputs)
    # An exported program has plain operations where an eager model may run a kernel.
    torch.testing.assert_close(
        program.module()(**inputs).logits, logits(model, inputs), rtol=0, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "bert_classifier"])
def test_onnx_of_the_dense_form(family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnx and onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = fpe_hf.to_dense(fpe_hf.widen(tiny_model(family)))
    inputs = tiny_inputs(model)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (), file, kwargs=inputs, input_names=list(inputs), dynamo=True)
    session = runtime.InferenceSession(file)
    feed = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
    expected = logits(model, inputs)
    np.testing.assert_allclose(session.run(None, feed)[0], expected, rtol=1e-4, atol=1e-5)


def logits(model: PreTrainedModel | Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found
