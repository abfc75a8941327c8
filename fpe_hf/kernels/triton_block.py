"""Triton kernels for the `block` layout: all blocks of a projection in one launch.

Three products, named after what they do on the indexed side (see `BlockShape`), serve up and down
projections, forward and backward:

| | up projection | down projection |
|---|---|---|
| `gather_blocks` | outputs | gradient of the hidden neurons |
| `scatter_blocks` | gradient of the inputs | outputs |
| `weight_blocks` | gradient of the weights | gradient of the weights |

Sums are taken in float32 and in an order that does not depend on the launch: nothing is added
atomically. Import this module only where Triton is installed.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-redef"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gpu_shapes import BlockShape
from .triton_launch import on_device, precision, with_unit_stride

FEW_TOKENS = 32
"""Up to here reading the weights takes the time, and columns are gathered as they are needed."""


@triton.jit
def _locate(program, token_blocks, column_blocks):
    """Group, token block and column block of a program; neighbours share what they read."""
    per_group = token_blocks * column_blocks
    within = program % per_group
    row, column = tl.swizzle2d(
        within // column_blocks, within % column_blocks, token_blocks, column_blocks, 8
    )
    return program // per_group, row, column


@triton.jit
def _tile_span(tile, TILE: tl.constexpr, PARENTS: tl.constexpr):
    """First parent and number of parents of a tile, the latter a constant if all are equal."""
    start = tile * TILE
    if PARENTS % TILE == 0:
        size: tl.constexpr = TILE
        return start, size
    return start, tl.minimum(TILE, PARENTS - start)


@triton.jit
def _child_span(child, COUNTS: tl.constexpr, EQUAL: tl.constexpr):
    """First indexed column and number of columns of a child, the latter a constant if all are
    equal."""
    if EQUAL:
        size: tl.constexpr = COUNTS[0]
        return child * size, size
    start = 0
    count = COUNTS[0]
    for other in tl.static_range(1, len(COUNTS)):
        start += tl.where(child >= other, COUNTS[other - 1], 0)
        count = tl.where(child == other, COUNTS[other], count)
    return start, count


@triton.jit
def _wide_columns(
    rows,
    child,
    start,
    parents,
    PARENTS: tl.constexpr,
    ALPHA: tl.constexpr,
    SOURCES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Wide columns of the rows of a block, which are ordered by source, then parent.

    `SHARED`: the wide side has one column per parent, in halves, which all children share.
    """
    if SHARED:
        first = start
        width: tl.constexpr = PARENTS
    else:
        first = start * ALPHA + child * parents
        width: tl.constexpr = PARENTS * ALPHA
    if SOURCES == 1:
        return first + rows
    source = rows // parents
    place = first + rows % parents
    if INTERLEAVED and not SHARED:
        return place * SOURCES + source
    return source * width + place


@triton.jit
def _block_offsets(
    wide,
    indexed,
    begin,
    count,
    start,
    parents,
    TOTAL: tl.constexpr,
    SOURCES: tl.constexpr,
    UP: tl.constexpr,
):
    """Offsets into the packed weights of the entries (wide row, indexed column) of a block."""
    base = (start.to(tl.int64) * TOTAL + parents * begin) * SOURCES
    if UP:
        return base + wide * count + indexed
    return base + indexed * (parents * SOURCES) + wide


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.maximum(z, 0.0)
    elif ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(y)) / 2 = sigmoid(2 y)
        z = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    return z


@triton.jit(do_not_specialize=["tokens"])
def _gather_kernel(
    narrow,
    index,
    weight,
    bias,
    out,
    pre,
    tokens,
    narrow_stride,
    PARENTS: tl.constexpr,
    TILE: tl.constexpr,
    COUNTS: tl.constexpr,
    TOTAL: tl.constexpr,
    EQUAL: tl.constexpr,
    ALPHA: tl.constexpr,
    SOURCES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UP: tl.constexpr,
    INDEXED: tl.constexpr,
    COUPLED: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    KEEP_PRE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`out[:, wide] = act(narrow[:, columns] @ block.T + bias)`; `COUPLED`: summed over children,
    the sum given to all of them. Program: tile (and child), tokens, rows of the block."""
    token_blocks = tl.cdiv(tokens, BLOCK_M)
    row_blocks: tl.constexpr = tl.cdiv(TILE * SOURCES, BLOCK_N)
    group, token_block, row_block = _locate(tl.program_id(0), token_blocks, row_blocks)
    if COUPLED:
        tile = group
        first = 0
        last = ALPHA
    else:
        tile = group // ALPHA
        first = group % ALPHA
        last = first + 1
    start, parents = _tile_span(tile, TILE, PARENTS)
    token = (token_block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    row = row_block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_token = token < tokens
    is_row = row < parents * SOURCES
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for child in range(first, last):
        begin, count = _child_span(child, COUNTS, EQUAL)
        for k in range(0, count, BLOCK_K):
            column = k + tl.arange(0, BLOCK_K)
            is_column = column < count
            place = tile * TOTAL + begin + column
            if INDEXED:
                place = tl.load(index + place, is_column, other=0).to(tl.int32)
            x = tl.load(
                narrow + token[:, None] * narrow_stride + place[None, :],
                is_token[:, None] & is_column[None, :],
                other=0.0,
            )
            offsets = _block_offsets(
                row[None, :], column[:, None], begin, count, start, parents, TOTAL, SOURCES, UP
            )
            w = tl.load(weight + offsets, is_column[:, None] & is_row[None, :], other=0.0)
            total = tl.dot(x, w, total, input_precision=PRECISION)
    width: tl.constexpr = PARENTS * ALPHA
    inside = is_token[:, None] & is_row[None, :]
    if COUPLED:
        copies: tl.constexpr = ALPHA
    else:
        copies: tl.constexpr = 1
    for copy in tl.static_range(copies):
        child = first + copy
        z = total
        if BIAS == "shared":
            own = _wide_columns(row, child, start, parents, PARENTS, ALPHA, SOURCES, False, True)
            z += tl.load(bias + own, is_row, other=0.0).to(tl.float32)[None, :]
        if BIAS == "child":
            own = _wide_columns(row, child, start, parents, PARENTS, ALPHA, SOURCES, False, False)
            z += tl.load(bias + own, is_row, other=0.0).to(tl.float32)[None, :]
        column = _wide_columns(
            row, child, start, parents, PARENTS, ALPHA, SOURCES, INTERLEAVED, False
        )
        where = token[:, None] * (width * SOURCES) + column[None, :]
        if KEEP_PRE:
            tl.store(pre + where, z.to(pre.dtype.element_ty), inside)
        tl.store(out + where, _activate(z, ACTIVATION).to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["tokens"])
def _scatter_kernel(
    wide,
    index,
    weight,
    bias,
    out,
    tokens,
    wide_stride,
    out_stride,
    PARENTS: tl.constexpr,
    TILE: tl.constexpr,
    COUNTS: tl.constexpr,
    TOTAL: tl.constexpr,
    LARGEST: tl.constexpr,
    EQUAL: tl.constexpr,
    ALPHA: tl.constexpr,
    SOURCES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UP: tl.constexpr,
    SHARED: tl.constexpr,
    DIRECT: tl.constexpr,
    BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`out[:, columns] = wide[:, rows] @ block + bias`, or without `DIRECT` the same, block beside
    block, to be summed later. Program: tile and child, tokens, columns of the block."""
    token_blocks = tl.cdiv(tokens, BLOCK_M)
    column_blocks: tl.constexpr = tl.cdiv(LARGEST, BLOCK_N)
    group, token_block, column_block = _locate(tl.program_id(0), token_blocks, column_blocks)
    tile = group // ALPHA
    child = group % ALPHA
    start, parents = _tile_span(tile, TILE, PARENTS)
    begin, count = _child_span(child, COUNTS, EQUAL)
    token = (token_block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_token = token < tokens
    is_column = column < count
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, parents * SOURCES, BLOCK_K):
        row = k + tl.arange(0, BLOCK_K)
        is_row = row < parents * SOURCES
        hidden = _wide_columns(
            row, child, start, parents, PARENTS, ALPHA, SOURCES, INTERLEAVED, SHARED
        )
        h = tl.load(
            wide + token[:, None] * wide_stride + hidden[None, :],
            is_token[:, None] & is_row[None, :],
            other=0.0,
        )
        offsets = _block_offsets(
            row[:, None], column[None, :], begin, count, start, parents, TOTAL, SOURCES, UP
        )
        w = tl.load(weight + offsets, is_row[:, None] & is_column[None, :], other=0.0)
        total = tl.dot(h, w, total, input_precision=PRECISION)
    place = tile * TOTAL + begin + column
    if DIRECT:
        place = tl.load(index + place, is_column, other=0).to(tl.int32)
        if BIASED:
            total += tl.load(bias + place, is_column, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + token[:, None] * out_stride + place[None, :],
        total.to(out.dtype.element_ty),
        is_token[:, None] & is_column[None, :],
    )


@triton.jit(do_not_specialize=["tokens"])
def _weight_kernel(
    wide,
    narrow,
    index,
    out,
    tokens,
    wide_stride,
    narrow_stride,
    PARENTS: tl.constexpr,
    TILE: tl.constexpr,
    COUNTS: tl.constexpr,
    TOTAL: tl.constexpr,
    LARGEST: tl.constexpr,
    EQUAL: tl.constexpr,
    ALPHA: tl.constexpr,
    SOURCES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UP: tl.constexpr,
    INDEXED: tl.constexpr,
    SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`block = wide[:, rows].T @ narrow[:, columns]`. Program: tile and child, rows, columns."""
    row_blocks: tl.constexpr = tl.cdiv(TILE * SOURCES, BLOCK_M)
    column_blocks: tl.constexpr = tl.cdiv(LARGEST, BLOCK_N)
    group, row_block, column_block = _locate(tl.program_id(0), row_blocks, column_blocks)
    tile = group // ALPHA
    child = group % ALPHA
    start, parents = _tile_span(tile, TILE, PARENTS)
    begin, count = _child_span(child, COUNTS, EQUAL)
    row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = row < parents * SOURCES
    is_column = column < count
    hidden = _wide_columns(row, child, start, parents, PARENTS, ALPHA, SOURCES, INTERLEAVED, SHARED)
    place = tile * TOTAL + begin + column
    if INDEXED:
        place = tl.load(index + place, is_column, other=0).to(tl.int32)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, tokens, BLOCK_K):
        token = (k + tl.arange(0, BLOCK_K)).to(tl.int64)
        is_token = token < tokens
        h = tl.load(
            wide + token[None, :] * wide_stride + hidden[:, None],
            is_token[None, :] & is_row[:, None],
            other=0.0,
        )
        x = tl.load(
            narrow + token[:, None] * narrow_stride + place[None, :],
            is_token[:, None] & is_column[None, :],
            other=0.0,
        )
        total = tl.dot(h, x, total, input_precision=PRECISION)
    offsets = _block_offsets(
        row[:, None], column[None, :], begin, count, start, parents, TOTAL, SOURCES, UP
    )
    inside = is_row[:, None] & is_column[None, :]
    tl.store(out + offsets, total.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["tokens", "columns"])
def _collect_kernel(
    parts,
    places,
    bias,
    out,
    tokens,
    columns,
    parts_stride,
    TERMS: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`out[:, j] = sum over terms of parts[:, places[term, j]] + bias[j]`; negative places are
    nothing."""
    token = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_token = token < tokens
    is_column = column < columns
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for term in range(TERMS):
        place = tl.load(places + term * columns + column, is_column, other=0).to(tl.int32)
        found = is_column & (place >= 0)
        part = tl.load(
            parts + token[:, None] * parts_stride + place[None, :],
            is_token[:, None] & found[None, :],
            other=0.0,
        )
        total += part.to(tl.float32)
    if BIASED:
        total += tl.load(bias + column, is_column, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + token[:, None] * columns + column[None, :],
        total.to(out.dtype.element_ty),
        is_token[:, None] & is_column[None, :],
    )


def gather_blocks(
    narrow: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: BlockShape,
    *,
    coupled: bool = False,
    activation: str = "none",
    keep_pre: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Every hidden neuron from the columns that its block reads.

    Args:
        narrow: `[tokens, features]`.
        index: Indexed columns of every tile, child after child, `[tiles, indexed]`, any integers.
        weight: Packed weights.
        bias: One per parent, `[sources * parents]`, one per hidden neuron, `[wide]`, both by
            source, or `None`.
        shape: Where the weights lie.
        coupled: Whether children of a parent all get the sum of what they get otherwise.
        activation: `"none"`, `"relu"`, `"silu"`, `"gelu"` or `"gelu_tanh"`.
        keep_pre: Whether to return what the activation was applied to.

    Returns:
        `[tokens, wide]`, and the same before the activation or `None`.
    """
    tokens = len(narrow)
    out = narrow.new_empty(tokens, shape.wide)
    pre = torch.empty_like(out) if keep_pre else None
    if not out.numel():
        return out, pre
    narrow, indexed = _read_columns(narrow, index)
    rows = shape.sources * shape.tile_size
    sizes = _sizes(narrow, tokens, rows, max(shape.counts))
    programs = _blocks(tokens, sizes["BLOCK_M"]) * _blocks(rows, sizes["BLOCK_N"])
    groups = len(shape.tiles) * (1 if coupled else shape.alpha)
    with on_device(narrow):
        _gather_kernel[(programs * groups,)](
            narrow,
            index,
            weight,
            bias,
            out,
            pre,
            tokens,
            narrow.stride(0),
            **_constants(shape),
            INDEXED=indexed,
            COUPLED=coupled,
            BIAS=_bias_kind(bias, shape),
            ACTIVATION=activation,
            KEEP_PRE=keep_pre,
            PRECISION=precision(),
            **sizes,
        )
    return out, pre


def scatter_blocks(
    wide: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: BlockShape,
    *,
    shared: bool = False,
) -> Tensor:
    """What the hidden neurons add to the columns that their blocks write.

    Args:
        wide: `[tokens, wide]`.
        index: As for `gather_blocks`.
        weight: Packed weights.
        bias: `[features]` or `None`.
        shape: Where the weights lie.
        shared: Whether `wide` has one column per source and parent instead, for all children.

    Returns:
        `[tokens, features]`.
    """
    tokens = len(wide)
    out = wide.new_empty(tokens, shape.features)
    if not out.numel():
        return out
    wide = with_unit_stride(wide)
    # Every column is written once; else the parts are written side by side and then collected.
    direct = len(shape.tiles) == 1 and shape.indexed == shape.features
    parts = out
    if not direct:
        width = len(shape.tiles) * shape.indexed
        parts = wide.new_empty(tokens, width, dtype=torch.float32)
    sizes = _sizes(wide, tokens, max(shape.counts), shape.sources * shape.tile_size)
    programs = _blocks(tokens, sizes["BLOCK_M"]) * _blocks(max(shape.counts), sizes["BLOCK_N"])
    with on_device(wide):
        _scatter_kernel[(programs * len(shape.tiles) * shape.alpha,)](
            wide,
            index,
            weight,
            bias,
            parts,
            tokens,
            wide.stride(0),
            parts.stride(0),
            **_constants(shape),
            LARGEST=max(shape.counts),
            SHARED=shared,
            DIRECT=direct,
            BIASED=bias is not None,
            PRECISION=precision(),
            **sizes,
        )
    if not direct:
        _collect(parts, _inverse(index, shape.features), bias, out)
    return out


def weight_blocks(
    wide: Tensor,
    narrow: Tensor,
    index: Tensor,
    shape: BlockShape,
    *,
    shared: bool = False,
) -> Tensor:
    """The gradient of packed weights.

    Args:
        wide: `[tokens, wide]`.
        narrow: `[tokens, features]`.
        index: As for `gather_blocks`.
        shape: Where the weights lie.
        shared: As for `scatter_blocks`.

    Returns:
        `[weights]`.
    """
    tokens = len(wide)
    out = wide.new_empty(shape.weights)
    wide = with_unit_stride(wide)
    narrow, indexed = _read_columns(narrow, index)
    rows, columns = shape.sources * shape.tile_size, max(shape.counts)
    sizes = _sizes(wide, rows, columns, tokens)
    programs = _blocks(rows, sizes["BLOCK_M"]) * _blocks(columns, sizes["BLOCK_N"])
    with on_device(wide):
        _weight_kernel[(programs * len(shape.tiles) * shape.alpha,)](
            wide,
            narrow,
            index,
            out,
            tokens,
            wide.stride(0),
            narrow.stride(0),
            **_constants(shape),
            LARGEST=columns,
            INDEXED=indexed,
            SHARED=shared,
            PRECISION=precision(),
            **sizes,
        )
    return out


def _read_columns(narrow: Tensor, index: Tensor) -> tuple[Tensor, bool]:
    """A matrix to read indexed columns from, and whether by index.

    For many tokens the columns are put side by side once: tensor cores want whole rows.
    """
    narrow = with_unit_stride(narrow)
    if len(narrow) <= FEW_TOKENS:
        return narrow, True
    side_by_side = narrow.new_empty(len(narrow), index.numel())
    _collect(narrow, index.reshape(1, -1), None, side_by_side)
    return side_by_side, False


def _collect(parts: Tensor, places: Tensor, bias: Tensor | None, out: Tensor) -> None:
    tokens, columns = out.shape
    block_m, block_n = 16, min(256, _power(columns))
    with on_device(parts):
        _collect_kernel[(_blocks(tokens, block_m), _blocks(columns, block_n))](
            parts,
            places,
            bias,
            out,
            tokens,
            columns,
            parts.stride(0),
            TERMS=len(places),
            BIASED=bias is not None,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
        )


def _inverse(index: Tensor, features: int) -> Tensor:
    """Where, among all tiles' indexed columns, each tile has a feature: `[tiles, features]`, -1 if
    it does not."""
    places = torch.full((len(index), features), -1, dtype=torch.int32, device=index.device)
    own = torch.arange(index.numel(), dtype=torch.int32, device=index.device).view_as(index)
    return places.scatter_(1, index.long(), own)


def _constants(shape: BlockShape) -> dict[str, Any]:
    return {
        "PARENTS": shape.parents,
        "TILE": shape.tile_size,
        "COUNTS": shape.counts,
        "TOTAL": shape.indexed,
        "EQUAL": len(set(shape.counts)) == 1,
        "ALPHA": shape.alpha,
        "SOURCES": shape.sources,
        "INTERLEAVED": shape.interleaved,
        "UP": shape.up,
    }


def _bias_kind(bias: Tensor | None, shape: BlockShape) -> str:
    if bias is None:
        return "none"
    return "shared" if bias.numel() == shape.sources * shape.parents else "child"


def _sizes(operand: Tensor, m: int, n: int, k: int) -> dict[str, int]:
    """Block sizes, warps and stages for `[m, k] @ [k, n]`. Chosen on paper, not yet by measuring:
    for few rows many small programs with long reads in flight, else tiles for tensor cores that
    fit the shared memory of compute capability 8.0 to 9.0 (96 KiB)."""
    if m <= FEW_TOKENS:
        block_m, block_n, block_k, warps, stages = _power(m), 32, 128, 4, 3
    elif operand.dtype == torch.float32:
        block_m, block_n, block_k, warps, stages = 64, 64, 32, 4, 3
    else:
        block_m, block_n, block_k, warps, stages = 128, 128, 64, 8, 3
    return {
        "BLOCK_M": min(block_m, _power(m)),
        "BLOCK_N": min(block_n, _power(n)),
        "BLOCK_K": min(block_k, _power(k)),
        "num_warps": warps,
        "num_stages": stages,
    }


def _power(count: int) -> int:
    """The next power of two that tensor cores can take."""
    return max(16, 1 << (count - 1).bit_length()) if count else 16


def _blocks(count: int, block: int) -> int:
    return -(-count // block)
