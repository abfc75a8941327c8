"""Small integers packed into bytes: kept-entry masks (1 bit) and child assignments (1 to 8)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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


def _group(states: int) -> tuple[int, int]:
    """How many of `states` different values to put into how many bits, up to 32, to waste least."""
    widths = ((count, (states**count - 1).bit_length()) for count in range(1, 33))
    return min((g for g in widths if g[1] <= 32), key=lambda group: group[1] / group[0])


def states_bytes(count: int, states: int) -> int:
    """Bytes that hold `count` values below `states`."""
    size, width = _group(states)
    return packed_bytes(-(-count // size), width)


def pack_states(values: Tensor, states: int) -> Tensor:
    """Packs integers below `states` as digits of numbers, which wastes less than whole bits.

    Groups of digits, the first the lowest, become numbers of a fixed width, the lowest bit first:
    three digits in 7 bits for five states, seventeen in 27 for three (see `docs/format.md`).

    Args:
        values: Integers of any shape.
        states: How many different ones there are, 2 to 257.

    Returns:
        uint8 `[states_bytes(values.numel(), states)]`, on the CPU.
    """
    size, width = _group(states)
    flat = values.reshape(-1).cpu().numpy()
    digits = np.zeros((-(-len(flat) // size), size), np.uint32)
    digits.reshape(-1)[: len(flat)] = flat
    numbers = digits @ np.array([states**place for place in range(size)], np.uint32)
    parts = [
        np.packbits(_bits(numbers[start : start + _PIECE])[:, :width], bitorder="little")
        for start in range(0, len(numbers), _PIECE)  # a multiple of 8: parts end with a byte
    ]
    return torch.from_numpy(np.concatenate([*parts, np.zeros(0, np.uint8)]))


def _bits(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """The 32 bits of numbers, the lowest first."""
    raw = numbers.astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.unpackbits(raw, axis=1, bitorder="little")


def unpack_states(packed: Tensor, states: int, count: int) -> Tensor:
    """The inverse of `pack_states`: int16 `[count]`; bytes that it never gives make values that are
    not below `states`."""
    size, width = _group(states)
    groups = -(-count // size)
    raw = packed.cpu().numpy()
    found = np.empty((groups, size), np.int16)
    for start in range(0, groups, _PIECE):
        stop = min(groups, start + _PIECE)
        part = np.unpackbits(raw[start * width // 8 : -(-stop * width // 8)], bitorder="little")
        padded = np.zeros((stop - start, 32), np.uint8)
        padded[:, :width] = part[: (stop - start) * width].reshape(-1, width)
        left = np.packbits(padded, axis=1, bitorder="little").view("<u4")[:, 0]
        for place in range(size - 1):
            left, found[start:stop, place] = np.divmod(left, np.uint32(states))
        found[start:stop, size - 1] = np.minimum(left, states)
    return torch.from_numpy(found.reshape(-1)[:count]).to(packed.device)


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
