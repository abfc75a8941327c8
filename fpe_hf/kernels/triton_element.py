"""Triton kernel for the `element` layout and few tokens: reads every packed weight once.

A program takes some rows of the parent's matrix, puts their kept weights in place by counting mask
bits, and spreads them over the children: over outputs in an up projection, over hidden neurons in
a down projection. Import this module only where Triton is installed.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-redef"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .gpu_shapes import ElementShape
from .triton_launch import on_device, precision, with_unit_stride

MOST_TOKENS = 16
"""The kernel takes up to this many; from there on a dense matrix is worth building."""


@triton.jit
def _kept(keep, row, column, inside, COLUMNS: tl.constexpr):
    """Bits of the mask at rows `[R, 1]` and columns `[1, B]`: int32 `[R, B]`."""
    entry = row.to(tl.int64) * COLUMNS + column
    byte = tl.load(keep + (entry >> 3), inside, other=0).to(tl.int32)
    return (byte >> (entry & 7).to(tl.int32)) & 1


@triton.jit
def _children(owner, row, column, inside, COLUMNS: tl.constexpr, BITS: tl.constexpr):
    """The child of every entry at rows `[R, 1]` and columns `[1, B]`: int32 `[R, B]`."""
    bit = (row.to(tl.int64) * COLUMNS + column) * BITS
    byte = tl.load(owner + (bit >> 3), inside, other=0).to(tl.int32)
    return (byte >> (bit & 7).to(tl.int32)) & ((1 << BITS) - 1)


@triton.jit(do_not_specialize=["tokens"])
def _up_kernel(
    x,
    weight,
    keep,
    owner,
    starts,
    bias,
    coupling,
    out,
    tokens,
    x_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALPHA: tl.constexpr,
    CHILDREN: tl.constexpr,
    BITS: tl.constexpr,
    CODE_ROWS: tl.constexpr,
    SOURCES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PRUNED: tl.constexpr,
    BIAS: tl.constexpr,
    COUPLING: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Program: some rows, which are a source's parents; all tokens, all children."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.arange(0, BLOCK_M)
    child = tl.arange(0, CHILDREN)
    is_row = row < ROWS
    is_token = token < tokens
    parents: tl.constexpr = ROWS // SOURCES
    parent = row % parents
    source = row // parents
    if PRUNED:
        first = tl.load(starts + row, is_row, other=0).to(tl.int64)
    else:
        first = row.to(tl.int64) * COLUMNS
    total = tl.zeros((BLOCK_R * CHILDREN, BLOCK_M), tl.float32)
    for k in range(0, COLUMNS, BLOCK_B):
        column = k + tl.arange(0, BLOCK_B)
        is_column = column < COLUMNS
        inside = is_row[:, None] & is_column[None, :]
        if PRUNED:
            kept = _kept(keep, row[:, None], column[None, :], inside, COLUMNS)
            place = first[:, None] + tl.cumsum(kept, 1) - kept
            first += tl.sum(kept, 1)
            w = tl.load(weight + place, inside & (kept != 0), other=0.0)
        else:
            w = tl.load(weight + first[:, None] + column[None, :], inside, other=0.0)
        own_row = row * 0 if CODE_ROWS == 1 else parent
        codes = _children(owner, own_row[:, None], column[None, :], inside, COLUMNS, BITS)
        spread = tl.where(codes[:, None, :] == child[None, :, None], w[:, None, :], 0.0)
        read = tl.load(
            x + token[None, :] * x_stride + column[:, None],
            is_token[None, :] & is_column[:, None],
            other=0.0,
        )
        spread = tl.reshape(spread.to(w.dtype), (BLOCK_R * CHILDREN, BLOCK_B))
        total = tl.dot(spread, read, total, input_precision=PRECISION)
    z = tl.reshape(total, (BLOCK_R, CHILDREN, BLOCK_M))
    if COUPLING != "none":
        if COUPLING == "one":
            mu = tl.load(coupling + row * 0).to(tl.float32)
        else:
            mu = tl.load(coupling + row, is_row, other=0.0).to(tl.float32)
        z += mu[:, None, None] * (tl.sum(z, 1)[:, None, :] - z)
    is_child = child < ALPHA
    neuron = child[None, :] * parents + parent[:, None]
    exists = is_row[:, None] & is_child[None, :]
    if BIAS == "shared":
        z += tl.load(bias + row, is_row, other=0.0).to(tl.float32)[:, None, None]
    if BIAS == "child":
        own = source[:, None] * (parents * ALPHA) + neuron
        z += tl.load(bias + own, exists, other=0.0).to(tl.float32)[:, :, None]
    if INTERLEAVED:
        place = neuron * SOURCES + source[:, None]
    else:
        place = source[:, None] * (parents * ALPHA) + neuron
    tl.store(
        out + token[None, None, :] * (ROWS * ALPHA) + place[:, :, None],
        z.to(out.dtype.element_ty),
        exists[:, :, None] & is_token[None, None, :],
    )


@triton.jit(do_not_specialize=["tokens"])
def _down_kernel(
    x,
    weight,
    keep,
    owner,
    starts,
    bias,
    out,
    tokens,
    x_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALPHA: tl.constexpr,
    CHILDREN: tl.constexpr,
    BITS: tl.constexpr,
    PRUNED: tl.constexpr,
    BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Program: some rows, which are outputs; all tokens. Without `BITS` every child has a copy of
    every kept weight, a row's copies for one child after those for another."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.arange(0, BLOCK_M)
    child = tl.arange(0, CHILDREN)
    is_row = row < ROWS
    is_token = token < tokens
    if PRUNED:
        first = tl.load(starts + row, is_row, other=0).to(tl.int64)
        copy = tl.load(starts + row + 1, is_row, other=0).to(tl.int64) - first
    else:
        first = row.to(tl.int64) * COLUMNS
        copy = (row * 0 + COLUMNS).to(tl.int64)
    if BITS == 0:
        first = first * ALPHA
    total = tl.zeros((BLOCK_R, BLOCK_M), tl.float32)
    for k in range(0, COLUMNS, BLOCK_B):
        column = k + tl.arange(0, BLOCK_B)
        is_column = column < COLUMNS
        inside = is_row[:, None] & is_column[None, :]
        if PRUNED:
            kept = _kept(keep, row[:, None], column[None, :], inside, COLUMNS)
            place = first[:, None] + tl.cumsum(kept, 1) - kept
            first += tl.sum(kept, 1)
            inside = inside & (kept != 0)
        else:
            place = first[:, None] + column[None, :]
        if BITS == 0:
            spread = tl.load(
                weight + place[:, None, :] + child[None, :, None] * copy[:, None, None],
                inside[:, None, :] & (child < ALPHA)[None, :, None],
                other=0.0,
            )
        else:
            w = tl.load(weight + place, inside, other=0.0)
            codes = _children(owner, row[:, None], column[None, :], inside, COLUMNS, BITS)
            spread = tl.where(codes[:, None, :] == child[None, :, None], w[:, None, :], 0.0)
            spread = spread.to(w.dtype)
        # The hidden neurons that these columns are: child after child.
        entry = tl.arange(0, CHILDREN * BLOCK_B)
        own_child = entry // BLOCK_B
        own_column = k + entry % BLOCK_B
        exists = (own_child < ALPHA) & (own_column < COLUMNS)
        hidden = own_child * COLUMNS + own_column
        read = tl.load(
            x + token[None, :] * x_stride + hidden[:, None],
            is_token[None, :] & exists[:, None],
            other=0.0,
        )
        spread = tl.reshape(spread, (BLOCK_R, CHILDREN * BLOCK_B))
        total = tl.dot(spread, read, total, input_precision=PRECISION)
    if BIASED:
        total += tl.load(bias + row, is_row, other=0.0).to(tl.float32)[:, None]
    tl.store(
        out + token[None, :] * ROWS + row[:, None],
        total.to(out.dtype.element_ty),
        is_row[:, None] & is_token[None, :],
    )


def element_product(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    starts: Tensor | None,
    bias: Tensor | None,
    coupling: Tensor | None,
    shape: ElementShape,
) -> Tensor:
    """A projection in the `element` layout, without ever building its matrix.

    Args:
        x: Inputs, or hidden neurons child after child: at most `MOST_TOKENS` rows.
        weight: Packed weights.
        keep: Packed mask of kept entries, or `None` if all are.
        owner: Packed child of every entry, or `None` if every child has a copy.
        starts: Kept entries before every row, and in all, `[rows + 1]`, if there is a mask.
        bias: One per row, or, up, one per child, or `None`.
        coupling: Up: one number `[1]` or one per row `[rows]`; `None` for 0.
        shape: Where the weights lie.

    Returns:
        `[tokens, outputs]`.
    """
    tokens = len(x)
    out = x.new_empty(tokens, shape.outputs)
    if not out.numel():
        return out
    x = with_unit_stride(x)
    children = 1 << (shape.alpha - 1).bit_length()
    common: dict[str, Any] = {
        "ROWS": shape.rows,
        "COLUMNS": shape.columns,
        "ALPHA": shape.alpha,
        "CHILDREN": children,
        "BITS": shape.bits,
        "PRUNED": keep is not None,
        "PRECISION": precision(),
        "BLOCK_M": MOST_TOKENS,
        "num_warps": 4,
    }
    # Few rows in a program, so that there are many programs; tensor cores want 16 of them.
    if shape.up:
        rows = max(2, 16 // children)
        with on_device(x):
            _up_kernel[(-(-shape.rows // rows),)](
                x,
                weight,
                keep,
                owner,
                starts,
                bias,
                coupling,
                out,
                tokens,
                x.stride(0),
                CODE_ROWS=shape.code_rows,
                SOURCES=shape.sources,
                INTERLEAVED=shape.interleaved,
                BIAS=_bias_kind(bias, shape),
                COUPLING=_coupling_kind(coupling),
                BLOCK_R=rows,
                BLOCK_B=max(32, 512 // children),
                **common,
            )
    else:
        with on_device(x):
            _down_kernel[(-(-shape.rows // 16),)](
                x,
                weight,
                keep,
                owner,
                starts,
                bias,
                out,
                tokens,
                x.stride(0),
                BIASED=bias is not None,
                BLOCK_R=16,
                BLOCK_B=max(16, 256 // children),
                **common,
            )
    return out


def _bias_kind(bias: Tensor | None, shape: ElementShape) -> str:
    if bias is None:
        return "none"
    return "shared" if bias.numel() == shape.rows else "child"


def _coupling_kind(coupling: Tensor | None) -> str:
    if coupling is None:
        return "none"
    return "one" if coupling.numel() == 1 else "row"
