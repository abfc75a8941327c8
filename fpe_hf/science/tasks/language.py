"""A small causal language model of characters, on the text that every Python brings along: the
topics of its `help()`, which are the language reference."""

from __future__ import annotations

from collections import Counter
from functools import cache

import torch
from torch import Tensor, nn

from ..data import Labelled
from . import Task

STEPS = 2000
_CONTEXT = 64
_STRIDE = 16  # between the windows to train on
_RARE = 50  # characters seen less often are one and the same
_HELD_OUT = 10  # every so many paragraphs one is for testing, with those that follow
_RUN = 8  # paragraphs that stay together


def language(times: int, seed: int) -> Task:
    """GPT-2 with 3 layers of width 64.

    Args:
        times: Multiples of the usual steps.
        seed: Unused: all seeds have the same text.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    data = python_topics()

    def build(width: int) -> nn.Module:
        config = GPT2Config(
            vocab_size=len(data.names),
            n_positions=_CONTEXT,
            n_embd=64,
            n_layer=3,
            n_head=4,
            n_inner=width,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        model: nn.Module = GPT2LMHeadModel(config)
        return model

    return Task(data, build, times * STEPS, 16, lr=5e-3, metric="loss", argument="input_ids")


@cache
def python_topics() -> Labelled:
    """Windows of characters, and the characters that follow each of them.

    Paragraphs that occur twice are dropped, so that nothing tested was trained on. One in ten runs
    of paragraphs is for testing.
    """
    paragraphs = list(dict.fromkeys(_paragraphs()))
    runs = [paragraphs[start : start + _RUN] for start in range(0, len(paragraphs), _RUN)]
    test = [run for place, run in enumerate(runs) if place % _HELD_OUT == 0]
    train = [run for place, run in enumerate(runs) if place % _HELD_OUT]
    texts = ["\n\n".join("\n\n".join(run) for run in part) for part in (train, test)]
    counts = Counter(texts[0])
    names = ("�", *sorted(character for character in counts if counts[character] >= _RARE))
    x, test_x = (
        _windows(text, names, stride)
        for text, stride in zip(texts, (_STRIDE, _CONTEXT), strict=True)
    )
    return Labelled(x[:, :-1], x[:, 1:], test_x[:, :-1], test_x[:, 1:], names)


def _paragraphs() -> list[str]:
    from pydoc_data.topics import topics

    return [part.strip("\n") for name in sorted(topics) for part in topics[name].split("\n\n")]


def _windows(text: str, names: tuple[str, ...], stride: int) -> Tensor:
    """`[windows, context + 1]`."""
    places = {name: place for place, name in enumerate(names)}
    codes = [places.get(character, 0) for character in text]
    return torch.tensor(codes, dtype=torch.int64, device="cpu").unfold(0, _CONTEXT + 1, stride)
