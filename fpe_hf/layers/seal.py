"""Index buffers keep what loading put into them, whatever averages the buffers of a model.

EMA and SWA may take integers along with the weights: `7 * 0.999 + 7 * 0.001` is cut off to 6, and
another input is read. A layer notices, and takes its own indices back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .checksum import checksum


class Seal:
    """What the index buffers of a layer hold. Deep copies share it: it costs no memory.

    Attributes:
        tensors: The buffers themselves, by name.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], sums: Mapping[str, int] | None = None
    ) -> None:
        self.tensors = dict(tensors)
        self._sums = sums or {name: _sum(tensor) for name, tensor in tensors.items()}

    def __deepcopy__(self, memo: Any) -> Seal:
        return self

    def moved(self, tensors: Mapping[str, Tensor]) -> Seal:
        """The same with other tensors, which hold the same."""
        return Seal(tensors, self._sums)

    def fits(self, name: str, given: Tensor) -> bool:
        """Whether a tensor holds what the buffer did when it was sealed."""
        return _sum(given) == self._sums[name]

    def averaged(self, name: str, given: Tensor) -> bool:
        """Whether a tensor is what averages make of the buffer: equal, or cut off a little.

        The sum of two bytes may have lost its highest bit.
        """
        own = self.tensors.get(name)
        if own is None or given.is_meta or given.shape != own.shape:
            return False
        wide = own.to(given.device).double()
        apart = (wide - given).abs()
        if own.dtype == torch.uint8:
            apart = torch.minimum(apart, (apart - 128).abs())
        return bool((apart <= 1 + wide / 16).all())


def _sum(tensor: Tensor) -> int:
    return int(checksum([tensor]))


class Stamps(dict[str, tuple[Tensor, int]]):
    """Which tensors were found to be as sealed, and how often they had been written to by then.

    Copies and pickles start anew: they count anew.
    """

    def __reduce__(self) -> tuple[type[Stamps], tuple[()]]:
        return Stamps, ()

    def know(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor has not been written to since."""
        known, version = self.get(name, (None, 0))
        return known is tensor and version == _version(tensor)

    def note(self, name: str, tensor: Tensor) -> None:
        """Takes a tensor down as one that is as it was sealed."""
        self[name] = tensor, _version(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
