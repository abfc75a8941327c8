"""Small integers packed into bytes: kept-entry masks (1 bit) and child assignments (1 to 8)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_PIECE = 1 << 18


def code_bits(values: int) -> int:
    """Bits per code for `values` different values: 1, 2, 4 or 8, so that bytes hold whole codes."""
    return next(bits for bits in (1, 2, 4, 8) if values <= 1 << bits)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that hold `count` codes of `bits` bits."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs codes, the first into the lowest bits of the first byte.

    Args:
        codes: uint8 or bool of any shape, values below `2**bits`.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 `[packed_bytes(codes.numel(), bits)]`; the bits after the last code are zero.
    """
    per_byte = 8 // bits
    flat = codes.reshape(-1).to(torch.uint8)
    if bits == 1 and flat.is_cpu:
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    missing = -len(flat) % per_byte
    padded = functional.pad(flat, (0, missing)) if missing else flat
    padded = padded.view(-1, per_byte)
    packed = torch.zeros_like(padded[:, 0])
    for place in range(per_byte):
        packed |= padded[:, place] << (place * bits)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: uint8 `[count]`."""
    if bits == 8:
        return packed[:count]
    byte = torch.arange(256, dtype=torch.uint8, device=packed.device)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes = (byte.unsqueeze(1) >> shifts) & ((1 << bits) - 1)
    return codes.index_select(0, packed.int()).view(-1)[:count]  # all of a byte at once


def take_kept(weight: Tensor, keep: Tensor) -> Tensor:
    """`weight[keep]`, a few rows at a time: as a whole it needs 8 bytes an axis for every entry.

    Args:
        weight: Any shape.
        keep: bool, of the same shape, or of size 1 where all entries along an axis share it.

    Returns:
        The kept entries in row-major order.
    """
    rows = max(1, _PIECE * len(weight) // max(1, weight.numel()))
    parts = zip(weight.split(rows), keep.expand(weight.shape).split(rows), strict=True)
    return torch.cat([part.reshape(-1).index_select(0, places(kept)) for part, kept in parts])


def places(keep: Tensor) -> Tensor:
    """Where a mask is true, in row-major order: int64."""
    if keep.is_cpu:
        return torch.from_numpy(np.flatnonzero(keep.numpy()))  # several times faster than torch
    return keep.reshape(-1).nonzero().squeeze(1)


def smallest_int(limit: int) -> torch.dtype:
    """The smallest integer dtype that can index `limit` items and that collectives can send.

    gloo and NCCL know no int16.
    """
    return torch.uint8 if limit <= 1 << 8 else torch.int32
