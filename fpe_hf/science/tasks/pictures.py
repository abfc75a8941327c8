"""FashionMNIST: narrow and deep networks on pixels, a CNN, and a small vision transformer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from torch import nn

from ..data import Labelled, fashion_mnist
from . import Task, mlp

EPOCHS = 8
_BATCH = 128


def pixels(seed: int) -> Task:
    """Networks of one hidden layer."""
    data = _flat()
    steps = EPOCHS * (len(data.y) // _BATCH)
    return Task(
        data,
        lambda width: mlp(data.x.shape[1], [width], len(data.names)),
        steps,
        _BATCH,
        lr=1e-2,
        first="0",
    )


def deep(neurons: int, seed: int) -> Task:
    """Five layers. Blocks share no layer, so the first and the third hidden layer get the MLP width
    and can be widened, and the two between them keep their neurons."""
    data = _flat()
    return replace(
        pixels(seed),
        build=lambda width: mlp(data.x.shape[1], [width, neurons] * 2, len(data.names)),
    )


def cnn(seed: int) -> Task:
    """Two convolutions and a head of one hidden layer, trained jointly."""
    data = _images()

    def build(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            *mlp(16 * 7 * 7, [width], len(data.names)),
        )

    return Task(data, build, EPOCHS * (len(data.y) // _BATCH), _BATCH, lr=1e-2)


def vit(seed: int) -> Task:
    """A vision transformer of width 64 on patches of 7 x 7 pixels."""
    from transformers import ViTConfig, ViTForImageClassification

    data = _images()

    def build(width: int) -> nn.Module:
        config = ViTConfig(
            image_size=28,
            patch_size=7,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=width,
            num_labels=len(data.names),
        )
        model: nn.Module = ViTForImageClassification(config)
        return model

    return Task(data, build, 4 * (len(data.y) // 64), 64, lr=1e-3, argument="pixel_values")


@cache
def _images() -> Labelled:
    return fashion_mnist()


@cache
def _flat() -> Labelled:
    data = _images()
    return replace(data, x=data.x.flatten(1), test_x=data.test_x.flatten(1))
