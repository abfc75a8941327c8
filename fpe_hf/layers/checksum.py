"""A checksum of tensors that any device computes without leaving it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 1 << 15  # stays in cache
_DEVICE_CHUNK = 1 << 20
_FOLD = 1_000_003
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

UNVERIFIED = 0
_MARKS = 1 << 63


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of every number's bits times an odd weight that depends on its place, modulo 2^64.

    Any single changed number changes it, as do most exchanges of two. It guards against damage,
    not against malice.

    Returns:
        int64 `[1]`, never `UNVERIFIED`, on the device of the tensors.
    """
    total: Tensor | None = None
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1)
        bits = flat.view(_INTEGERS[flat.element_size()])
        subtotal = torch.zeros(1, dtype=torch.int64, device=flat.device)
        chunk = _CHUNK if flat.device.type == "cpu" else _DEVICE_CHUNK
        odd = 2 * torch.arange(min(chunk, len(bits)), device=flat.device) + 1
        for start in range(0, len(bits), chunk):
            part = bits[start : start + chunk].long()
            subtotal += 2 * start * part.sum()
            subtotal += (part * odd[: len(part)]).sum()
        total = subtotal + len(bits) if total is None else total * _FOLD + subtotal + len(bits)
    if total is None:
        return torch.ones(1, dtype=torch.int64, device="cpu")
    return torch.where(total == UNVERIFIED, 1, total)


def was_averaged(stored: Tensor, mark: int) -> bool:
    """Whether a stored checksum, and so what it belongs to, is an average of several.

    Averages pass through floating point, or are rounded by it: nearly the mark, but not the mark.

    Args:
        stored: `[2]`, the second of which was the mark.
        mark: The mark.
    """
    if stored.shape != (2,) or stored.is_meta:
        return False
    if stored.is_floating_point():
        return True
    apart = (int(stored[1]) - mark) % _MARKS
    return 0 < min(apart, _MARKS - apart) < _MARKS >> 20
