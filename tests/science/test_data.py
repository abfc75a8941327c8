from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fpe_hf.errors import FPEError, MissingDataError
from fpe_hf.science.data import digits, fashion_mnist


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{values.ndim}i", 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


def write_fashion_mnist(folder: Path) -> None:
    for part, count in (("train", 30), ("t10k", 10)):
        images = np.full((count, 28, 28), 255, np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def test_fashion_mnist_comes_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path)
    given_folder = fashion_mnist(tmp_path)
    monkeypatch.setenv("FPE_HF_FASHION_MNIST", str(tmp_path))
    for data in (given_folder, fashion_mnist()):
        assert data.x.shape == (30, 1, 28, 28)
        assert data.test_x.shape == (10, 1, 28, 28)
        assert float(data.x.min()) == 1.0
        assert data.test_y.tolist() == list(range(10))
        assert data.names[9] == "Ankle boot"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="apt install dataset-fashion-mnist") as error:
        fashion_mnist(tmp_path)
    assert isinstance(error.value, FPEError)
    assert str(tmp_path) in str(error.value)
    assert "FPE_HF_FASHION_MNIST" in str(error.value)


def test_digits_and_parts_of_them() -> None:
    data = digits()
    assert data.x.shape == (1437, 1, 8, 8)
    assert data.test_x.shape == (360, 1, 8, 8)
    assert float(data.x.min()) == 0.0
    assert float(data.x.max()) == 1.0
    assert torch.equal(digits().test_y, data.test_y)
    few = data.first_classes(3)
    assert few.names == ("0", "1", "2")
    assert set(few.y.tolist()) == set(few.test_y.tolist()) == {0, 1, 2}
    assert len(few.y) == int((data.y < 3).sum()) == len(few.x)
    less = data.first_examples(5, 2)
    assert (len(less.x), len(less.test_y)) == (5, 2)
    assert torch.equal(less.x, data.x[:5])
