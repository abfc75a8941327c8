"""Pictures that need no download: handwritten digits, and FashionMNIST (Xiao et al., arXiv
1708.07747) in the IDX format that it comes in."""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DataError, MissingDataError
from .extras import need

FOLDER_VARIABLE = "FPE_HF_FASHION_MNIST"
"""Environment variable: folder of the four IDX files."""

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_UNSIGNED_BYTE = 8


def read_idx(file: Path) -> npt.NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes, compressed or not.

    Args:
        file: The file; `.gz` is unpacked.

    Returns:
        uint8, of the shape the file states.

    Raises:
        DataError: It is no such file, or shorter or longer than it says.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read: {error}.") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise DataError(f"{file}: this is no IDX file of unsigned bytes.")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
    if len(shape) != data[3] or len(data) - start != math.prod(shape):
        raise DataError(
            f"{file}: the header states {shape}, but {len(data) - start} bytes follow: "
            "the file is cut short or damaged."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures in shades of grey.

    Attributes:
        images: `[examples, height, width]`, uint8.
        labels: `[examples]`, integers.
        names: Names of the classes.
        white: The value that is white; 0 is black.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[Any]
    names: tuple[str, ...]
    white: int


def digits() -> Pictures:
    """scikit-learn's digits: 1,797 images of 8 x 8 pixels.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    need("science", "The digits")
    from sklearn.datasets import load_digits

    found = load_digits()
    return Pictures(found.images.astype(np.uint8), found.target, tuple("0123456789"), 16)


def fashion_mnist(split: str, folder: str | Path | None = None) -> Pictures:
    """FashionMNIST, or whatever else is stored under the same file names.

    Args:
        split: `train` or `test`.
        folder: Folder of the IDX files, compressed or not; by default what the environment variable
            `FPE_HF_FASHION_MNIST` says, or where Debian's package puts them.

    Raises:
        DataError: A file is damaged, or the split unknown.
        MissingDataError: A file is not there.
    """
    if split not in _FILES:
        raise DataError(f"FashionMNIST has no split {split!r}; accepted: {', '.join(_FILES)}.")
    place = Path(folder or os.environ.get(FOLDER_VARIABLE) or DEBIAN_FOLDER)
    images, labels = (read_idx(_find(place, stem)) for stem in _FILES[split])
    if len(images) != len(labels) or images.ndim != 3:
        raise DataError(f"{place}: {images.shape} images and {labels.shape} labels do not fit.")
    return Pictures(images, labels, CLASSES, 255)


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    raise MissingDataError(
        f"FashionMNIST is not in {folder} ({stem}.gz is missing): install Debian's package "
        "dataset-fashion-mnist (apt install dataset-fashion-mnist), or name the folder of its IDX "
        f"files: data.data_dir in a recipe, --fashion-mnist, or {FOLDER_VARIABLE}."
    )
