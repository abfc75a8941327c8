"""Labelled data that needs no download: handwritten digits, and FashionMNIST from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import pictures
from ..draws import Draws


@dataclass(frozen=True)
class Labelled:
    """A data set for classification.

    Attributes:
        x: Training inputs, float32 `[examples, ...]`.
        y: Their classes, int64 `[examples]`.
        test_x: Test inputs.
        test_y: Their classes.
        names: Names of the classes.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    names: tuple[str, ...]

    def first_classes(self, count: int) -> Labelled:
        """The examples of the first classes."""
        train, test = self.y < count, self.test_y < count
        parts = (self.x[train], self.y[train], self.test_x[test], self.test_y[test])
        return Labelled(*parts, self.names[:count])

    def first_examples(self, train: int, test: int) -> Labelled:
        """Fewer examples."""
        parts = (self.x[:train], self.y[:train], self.test_x[:test], self.test_y[:test])
        return Labelled(*parts, self.names)


def digits() -> Labelled:
    """1,797 handwritten digits of 8 x 8 pixels, from scikit-learn: a fifth is for testing.

    Inputs are images `[1, 8, 8]` from 0 to 1.
    """
    found = pictures.digits()
    x, y = _tensors(found)
    order = Draws(0).order(len(y))
    train, test = order[: len(y) * 4 // 5], order[len(y) * 4 // 5 :]
    return Labelled(x[train], y[train], x[test], y[test], found.names)


def fashion_mnist(folder: str | Path | None = None) -> Labelled:
    """70,000 pictures of garments of 28 x 28 pixels (Xiao et al., arXiv 1708.07747).

    Inputs are images `[1, 28, 28]` from 0 to 1; 10,000 are for testing.

    Args:
        folder: See `fpe_hf.pictures.fashion_mnist`.

    Raises:
        DataError: A file is damaged.
        MissingDataError: A file is not there.
    """
    train, test = (pictures.fashion_mnist(split, folder) for split in ("train", "test"))
    return Labelled(*_tensors(train), *_tensors(test), train.names)


def _tensors(found: pictures.Pictures) -> tuple[Tensor, Tensor]:
    """Images `[examples, 1, height, width]` from 0 to 1, and labels."""
    images = torch.tensor(found.images, dtype=torch.float32, device="cpu").unsqueeze(1)
    return images / found.white, torch.tensor(found.labels, dtype=torch.int64, device="cpu")
