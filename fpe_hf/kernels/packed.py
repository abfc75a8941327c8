"""Products of a few tokens with packed weights on the CPU: every weight is read once.

`usable` says whether the kernel may do it here; if not, callers rebuild the matrix in plain torch.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from . import native
from .ordinary import is_ordinary

MOST_TOKENS = 256
"""With more tokens, rebuilding the matrix for an ordinary product is about as fast, or faster."""

AT_ONCE = 64
"""Tokens whose inputs stay in the processor's cache while the weights pass by."""

_DTYPES = (torch.float32, torch.bfloat16)
_WORD = 64


class Mode(IntEnum):
    """What the children of a matrix row share, and what each has for itself."""

    PARTS = 0
    """An up projection: children read the same inputs, and their sums are apart."""
    OWNED = 1
    """A down projection, partitioned: a child has its own inputs; there is one sum."""
    COPIES = 2
    """A down projection, replicated: the same, and a child has its own values, too."""


class _Way(IntEnum):
    """What the lanes of the kernel's vectors are; see `packed.c`."""

    COLUMNS = 0
    TOKENS = 1
    CHILDREN = 2


def usable(x: Tensor, width: int, *numbers: Tensor | None) -> bool:
    """Whether `packed_rows` can stand in for plain torch operations here.

    It can for a few tokens of ordinary tensors on the CPU when nobody wants a gradient. Programs
    made by `torch.export` are left to plain operations, so that they run anywhere.

    Args:
        x: Inputs `[..., width]`.
        width: Their width.
        numbers: The parameters of the layer, the weights first.
    """
    given = [x, *(number for number in numbers if number is not None)]
    if not (_compiled_for_here() if torch.compiler.is_compiling() else is_ordinary(*given)):
        return False
    weight = given[1]
    if not x.device.type == weight.device.type == "cpu" or weight.dtype not in _DTYPES:
        return False
    if x.dtype != weight.dtype and not (torch.is_autocast_enabled("cpu") and x.dtype in _DTYPES):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return False
    return 0 < x.numel() <= MOST_TOKENS * width and _is_native()


def _compiled_for_here() -> bool:
    return not torch.compiler.is_exporting()


def output_dtype(x: Tensor) -> torch.dtype:
    """What an ordinary product with `x` would return here, under autocast or not."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def packed_rows(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    mode: Mode,
    rows: int,
    columns: int,
    children: int,
    owner_rows: int = 1,
) -> Tensor:
    """Multiplies a few tokens with a matrix of packed weights.

    Args:
        x: `[tokens, columns]`, or `[tokens, children * columns]` if a child has its own inputs.
        weight: Kept weights `[values]`, float32 or bfloat16, in the order of `(row, column)`, or of
            `(row, child, column)` for `COPIES`.
        keep: Packed mask `[rows, columns]`, or `None` if everything is kept.
        owner: Packed child of each weight `[owner_rows, columns]`; `None` for one child or copies.
        mode: What children share.
        rows: Rows of the matrix.
        columns: Columns of the matrix, the children's side by side counted once.
        children: How many children there are.
        owner_rows: Row r has the children of row `r % owner_rows`.

    Returns:
        float32 `[tokens, children or 1, rows]`: sums per child for `PARTS`, else of all children.
    """
    arguments = (weight, keep, owner, int(mode), rows, columns, children, owner_rows)
    if torch.compiler.is_compiling():
        result: Tensor = _operator(x, *arguments)
        return result
    return _compute(x, *arguments)


def _compute(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    mode: int,
    rows: int,
    columns: int,
    children: int,
    owner_rows: int,
) -> Tensor:
    arguments = (weight.contiguous(), keep, owner, mode, rows, columns, children, owner_rows)
    if len(x) <= AT_ONCE:
        return _multiply(x, *arguments)
    return torch.cat([_multiply(some, *arguments) for some in x.split(AT_ONCE)])


def _multiply(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    mode: int,
    rows: int,
    columns: int,
    children: int,
    owner_rows: int,
) -> Tensor:
    group = children if children <= 2 else 4 if children <= 4 else 8
    kernel = native.library("packed")
    assert kernel is not None
    lanes = _lanes(kernel)
    way = _way(len(x), mode, group, lanes)
    inputs = x.resolve_neg().float().reshape(len(x), -1, columns)
    sums = children if mode == Mode.PARTS else 1
    vectors = 1
    if way == _Way.COLUMNS:
        arranged = _lanes_of_columns(inputs, 1 if mode == Mode.PARTS else group, group, lanes)
        out = torch.empty(arranged.shape[1], sums, rows)
    elif way == _Way.CHILDREN:
        arranged = _lanes_of_children(inputs, group, lanes)
        vectors = arranged.shape[2]
        out = torch.empty(vectors * lanes // group, sums, rows)
    else:
        vectors = _vectors(len(x), lanes)
        arranged = _lanes_of_tokens(inputs, vectors * lanes)
        out = torch.empty(len(arranged), sums, rows, vectors * lanes)
    kernel.fpe_packed_rows(
        int(way),
        mode,
        weight.dtype == torch.bfloat16,
        weight.data_ptr(),
        weight.numel(),
        *_bytes(keep),
        *_bytes(owner),
        {1: 1, 2: 1, 4: 2}.get(group, 4 if children <= 16 else 8),
        owner_rows,
        arranged.data_ptr(),
        arranged.shape[2 if way == _Way.COLUMNS else 1],
        out.data_ptr(),
        len(out) * (vectors * lanes if way == _Way.TOKENS else 1),
        rows,
        columns,
        children,
        vectors,
        torch.get_num_threads(),
    )
    if way == _Way.TOKENS:
        out = out.permute(0, 3, 1, 2).flatten(0, 1)
    elif len(out) == len(x):
        return out
    return out[: len(x)].clone(memory_format=torch.contiguous_format)


@cache
def _lanes(kernel: ctypes.CDLL) -> int:
    """How many numbers the compiled kernel computes at once."""
    lanes = ctypes.c_int64()
    kernel.fpe_packed_lanes(ctypes.byref(lanes))
    return lanes.value


_operator = torch.library.custom_op("fpe_hf::packed_rows", _compute, mutates_args=())


@_operator.register_fake
def _shape(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    mode: int,
    rows: int,
    columns: int,
    children: int,
    owner_rows: int,
) -> Tensor:
    sums = children if mode == Mode.PARTS else 1
    return x.new_empty((x.shape[0], sums, rows), dtype=torch.float32)


def _lanes_of_columns(x: Tensor, inputs: int, group: int, lanes: int) -> Tensor:
    """`[tokens, inputs, columns]` -> `[columns / lanes, tokens, inputs, lanes]`, zeros added so
    that tokens, inputs and columns are as many as the kernel takes at once."""
    at_once = 1 if len(x) == 1 else 2 if group > (2 if lanes == 8 else 4) else 4
    missing = (-x.shape[2] % _WORD, -x.shape[1] % inputs, -len(x) % at_once)
    if any(missing):
        x = functional.pad(x, (0, missing[0], 0, missing[1], 0, missing[2]))
    chunks: Tensor = x.unflatten(2, (-1, lanes))
    return chunks.permute(2, 0, 1, 3).contiguous()


def _way(tokens: int, mode: int, group: int, lanes: int) -> _Way:
    """The fastest way, as measured."""
    if lanes == 16:
        return _Way.COLUMNS if tokens <= (8 if group <= 4 else 4) else _Way.TOKENS
    if mode == Mode.COPIES and group >= 4:
        return _Way.CHILDREN if tokens <= 8 else _Way.TOKENS
    most = 2 if group == 8 else 8 if group <= 2 and mode == Mode.PARTS else 4
    return _Way.COLUMNS if tokens <= most else _Way.TOKENS


def _vectors(tokens: int, lanes: int) -> int:
    """How many vectors of tokens a value is multiplied with at once."""
    if lanes == 16:
        return 1
    return min((4, 2, 1), key=lambda many: -(-tokens // (many * lanes)) * (many + 1))


def _lanes_of_tokens(x: Tensor, lanes: int) -> Tensor:
    """`[tokens, inputs, columns]` -> `[tokens / lanes, inputs, columns, lanes]`."""
    x = functional.pad(x, (0, 0, 0, 0, 0, -len(x) % lanes))
    tiles: Tensor = x.unflatten(0, (-1, lanes))
    return tiles.permute(0, 2, 3, 1).contiguous()


def _lanes_of_children(x: Tensor, group: int, lanes: int) -> Tensor:
    """`[tokens, inputs, columns]` -> `[inputs / group, columns, vectors, lanes]`. A vector has a
    group of inputs of one token or two."""
    many = lanes // group
    vectors = -(-len(x) // many)
    vectors += -vectors % min(4, 1 << (vectors - 1).bit_length())
    x = functional.pad(x, (0, 0, 0, -x.shape[1] % group, 0, vectors * many - len(x)))
    grouped = x.reshape(vectors, many, -1, group, x.shape[2])
    return grouped.permute(2, 4, 0, 1, 3).contiguous()


def _bytes(packed: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if packed is None else (packed.data_ptr(), packed.numel())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_native() -> bool:
    return native.library("packed") is not None
