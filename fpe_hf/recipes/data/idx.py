"""The IDX format of MNIST and FashionMNIST, and FashionMNIST itself."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import RecipeError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_CLASSES = (
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
        RecipeError: It is no such file, or shorter or longer than it says.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise RecipeError(f"{file}: cannot be read: {error}.") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise RecipeError(f"{file}: this is no IDX file of unsigned bytes.")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
    if len(shape) != data[3] or len(data) - start != math.prod(shape):
        raise RecipeError(
            f"{file}: the header states {shape}, but {len(data) - start} bytes follow: "
            "the file is cut short or damaged."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def fashion_mnist(
    split: str, folder: Path | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """FashionMNIST, or whatever else is stored under the same file names.

    Args:
        split: `train` or `test`.
        folder: Folder of the IDX files; by default where Debian's package puts them.

    Returns:
        Images `[examples, 28, 28]` and labels `[examples]`, uint8.

    Raises:
        RecipeError: A file is missing or damaged, or the split unknown.
    """
    if split not in _FILES:
        raise RecipeError(f"FashionMNIST has no split {split!r}; accepted: {', '.join(_FILES)}.")
    place = FASHION_MNIST if folder is None else folder
    arrays = []
    for stem in _FILES[split]:
        candidates = [place / f"{stem}.gz", place / stem]
        file = next((each for each in candidates if each.is_file()), None)
        if file is None:
            raise RecipeError(
                f"{candidates[0]} is not there: install Debian's package dataset-fashion-mnist, "
                "or name the folder of the IDX files in data.data_dir."
            )
        arrays.append(read_idx(file))
    images, labels = arrays
    if len(images) != len(labels) or images.ndim != 3:
        raise RecipeError(f"{place}: {images.shape} images and {labels.shape} labels do not fit.")
    return images, labels
