from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fpe_hf.errors import DataError, MissingDataError
from fpe_hf.pictures import DEBIAN_FOLDER, fashion_mnist, read_idx


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.uint8, arrays.array_shapes(max_dims=3, max_side=5)), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, packed: bool
) -> None:
    file = tmp_path_factory.mktemp("idx") / ("file.gz" if packed else "file")
    file.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert np.array_equal(read_idx(file), array)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no IDX"),
        (b"\x89PNG....", "no IDX"),
        (idx(np.zeros((3, 2), np.uint8))[:-1], "cut short"),
        (idx(np.zeros((3, 2), np.uint8)) + b"x", "cut short"),
        (bytes([0, 0, 8, 200]), "cut short"),
        (bytes([0, 0, 8, 2]) + b"\xff" * 8, "cut short"),
    ],
)
def test_what_is_no_idx_file(content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=named):
        read_idx(tmp_path / "file")


def test_a_packed_file_that_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(np.zeros((30, 2), np.uint8)))[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "a.gz")


def test_missing_files_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="apt install dataset-fashion-mnist"):
        fashion_mnist("train", tmp_path)
    with pytest.raises(DataError, match="accepted: train, test"):
        fashion_mnist("validation", tmp_path)


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_real_files() -> None:
    found = fashion_mnist("test")
    images, labels = found.images, found.labels
    assert images.shape == (10_000, 28, 28)
    assert np.array_equal(np.bincount(labels), [1000] * 10)
