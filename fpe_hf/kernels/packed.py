"""Matrices whose kept entries are packed: products with a few tokens that read every value once,
filling in the zeros, and taking the values out again.

On the CPU, ordinary tensors go to `packed.c`; anything else is done in plain torch.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CheckpointError
from ..packing import code_bits, packed_bytes, places, unpack
from . import native
from .ordinary import is_ordinary

MOST_TOKENS = 32
"""With more tokens, filling in the zeros for an ordinary product is about as fast, or faster."""

CACHED = 1 << 20
"""Bytes of inputs that stay in a core's cache while the weights pass by."""

MOST_CHILDREN = 16
"""Of a product; filling in knows no limit."""

_DTYPES = (torch.float32, torch.bfloat16)
_MOVED = (*_DTYPES, torch.float16, torch.float64)
_WORD = 64


class Rows(NamedTuple):
    """The rows of a packed matrix, counted along three nested axes, and where they belong.

    Attributes:
        axes: How many there are along each axis.
        columns: Entries of a row.
        children: Children that a row's values are divided among, by codes.
        keep: Along each axis, by how many rows of the mask one moves on.
        owner: The same for the codes.
        inputs: The same for the inputs that rows are multiplied with.
        order: How the filled-in matrix counts the three axes and the children (3).
    """

    axes: tuple[int, int, int]
    columns: int
    children: int
    keep: tuple[int, int, int]
    owner: tuple[int, int, int]
    inputs: tuple[int, int, int]
    order: tuple[int, int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the filled-in matrix: axes and children in their order, and the columns."""
        sizes = (*self.axes, self.children)
        return (*(sizes[axis] for axis in self.order), self.columns)

    def span(self, steps: Sequence[int]) -> int:
        """How many rows of something there must be."""
        return 1 + sum((n - 1) * step for n, step in zip(self.axes, steps, strict=True))

    def spread(self, packed: Tensor, bits: int, steps: Sequence[int]) -> Tensor:
        """Unpacks codes, for every entry: uint8 `[*axes, columns]`."""
        codes = unpack(packed, bits, self.span(steps) * self.columns)
        strides = (*(step * self.columns for step in steps), 1)
        return codes.as_strided((*self.axes, self.columns), strides)


def usable(x: Tensor, width: int, rows: Rows, *numbers: Tensor | None) -> bool:
    """Whether `sums` can stand in for plain torch operations here.

    It can for a few tokens of ordinary tensors on the CPU when nobody wants a gradient. Programs
    made by `torch.export` are left to plain operations, so that they run anywhere.

    Args:
        x: Inputs `[..., width]`.
        width: Their width. Others are left to plain operations, which refuse them.
        rows: The rows.
        numbers: The parameters of the layer, the weights first.
    """
    given = [x, *(number for number in numbers if number is not None)]
    compiling = torch.compiler.is_compiling()
    if torch.compiler.is_exporting() if compiling else not is_ordinary(*given):
        return False
    weight = given[1]
    if not x.device.type == weight.device.type == "cpu" or weight.dtype not in _DTYPES:
        return False
    if x.dtype != weight.dtype and not (torch.is_autocast_enabled("cpu") and x.dtype in _DTYPES):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return False
    few = x.dim() > 0 and x.shape[-1] == width and 0 < x.numel() <= MOST_TOKENS * width
    return few and rows.children <= MOST_CHILDREN and _is_native()


def output_dtype(x: Tensor) -> torch.dtype:
    """What an ordinary product with `x` would return here, under autocast or not."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def sums(
    x: Tensor, weight: Tensor, keep: Tensor | None, owner: Tensor | None, rows: Rows
) -> Tensor:
    """Multiplies a few tokens with a packed matrix.

    Args:
        x: `[tokens, inputs, columns]`: one input for all, or one for each child, or as many as
            `rows.inputs` speaks of.
        weight: Kept values in the order of the rows, float32 or bfloat16.
        keep: Packed mask of kept entries, or `None`.
        owner: Packed codes, or `None` if there is one child.
        rows: The rows.

    Returns:
        float32 `[tokens, children, *axes]`.
    """
    if torch.compiler.is_compiling():
        result: Tensor = _operator(x, weight, keep, owner, _flattened(rows))
        return result
    return _sums(x, weight, keep, owner, rows)


def fill(weight: Tensor, keep: Tensor | None, owner: Tensor | None, rows: Rows) -> Tensor:
    """The matrix `rows.shape` with its zeros filled in; differentiable any number of times.

    Args:
        weight: Kept values in the order of the rows.
        keep: Packed mask of kept entries, or `None`.
        owner: Packed codes, or `None` if there is one child.
        rows: The rows.
    """
    if _in_c(weight, keep, owner):
        filled: Tensor = _Fill.apply(weight, keep, owner, rows)  # type: ignore[no-untyped-call]
        return filled
    matrix, zero = weight, weight.new_zeros(())
    if keep is not None:
        there = rows.spread(keep, 1, rows.keep).bool()
        # Not masked_scatter: its derivative has none.
        number = (there.flatten().cumsum(0, dtype=torch.int32) - 1).clamp(0, weight.numel())
        matrix = functional.pad(weight, (0, 1)).index_select(0, number).view(there.shape)
        matrix = torch.where(there, matrix, zero)
    matrix = matrix.view(*rows.axes, 1, rows.columns)
    if owner is not None:
        child = torch.arange(rows.children, dtype=torch.uint8, device=owner.device)[:, None]
        owned = rows.spread(owner, code_bits(rows.children), rows.owner).unsqueeze(3) == child
        matrix = torch.where(owned, matrix, zero)
    return matrix.permute(*rows.order, 4)


def take(
    matrix: Tensor, keep: Tensor | None, owner: Tensor | None, rows: Rows, count: int
) -> Tensor:
    """The values at the places where `fill` puts them: its adjoint, and differentiable as well.

    Args:
        matrix: `rows.shape`.
        keep: Packed mask of kept entries, or `None`.
        owner: Packed codes, or `None` if there is one child.
        rows: The rows.
        count: How many values there are.
    """
    if _in_c(matrix, keep, owner):
        taken: Tensor = _Take.apply(matrix, keep, owner, rows, count)  # type: ignore[no-untyped-call]
        return taken
    by_row = matrix.permute(*(rows.order.index(axis) for axis in range(4)), 4)
    if owner is None:
        values = by_row.squeeze(3)
    else:
        codes = rows.spread(owner, code_bits(rows.children), rows.owner).unsqueeze(3)
        values = by_row.gather(3, codes.long()).squeeze(3)
    values = values.reshape(-1)
    if keep is None:
        return values
    return values.index_select(0, places(rows.spread(keep, 1, rows.keep).bool()))


class _Fill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, keep: Tensor | None, owner: Tensor | None, rows: Rows
    ) -> Tensor:
        ctx.about = rows, weight.numel()
        ctx.save_for_backward(keep, owner)
        matrix = torch.empty(rows.shape, dtype=weight.dtype, device=weight.device)
        _move("fpe_packed_fill", weight.contiguous(), keep, owner, rows, matrix)
        return matrix

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        keep, owner = ctx.saved_tensors
        return take(gradient, keep, owner, *ctx.about), None, None, None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, keep: Tensor | None, owner: Tensor | None, rows: Rows, count: int
    ) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(keep, owner)
        weight = torch.empty(count, dtype=matrix.dtype, device=matrix.device)
        _move("fpe_packed_take", weight, keep, owner, rows, matrix.contiguous())
        return weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        keep, owner = ctx.saved_tensors
        return fill(gradient, keep, owner, ctx.rows), None, None, None, None


def _in_c(moved: Tensor, *tensors: Tensor | None) -> bool:
    """Whether `packed.c` can move numbers, as the other tensors say."""
    ordinary = is_ordinary(moved, *tensors) and moved.dtype in _MOVED
    return ordinary and all(t is None or t.is_cpu for t in (moved, *tensors)) and _is_native()


class _Job(ctypes.Structure):
    """`struct job` of `packed.c`."""

    _fields_ = [
        ("axes", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("columns", "children", "threads")),
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "width")),
        *(("keep", ctypes.c_void_p), ("keep_bytes", ctypes.c_int64)),
        ("keep_row", ctypes.c_int64 * 3),
        *(("owner", ctypes.c_void_p), ("owner_bytes", ctypes.c_int64)),
        ("owner_row", ctypes.c_int64 * 3),
        ("code_bits", ctypes.c_int64),
        ("dense", ctypes.c_void_p),
        ("dense_row", ctypes.c_int64 * 3),
        ("dense_child", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_row", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("tokens", "own")),
        ("sums", ctypes.c_void_p),
        ("found", ctypes.c_int64),
    ]


@cache
def _about(rows: Rows) -> tuple[dict[str, Any], int, int]:
    """What a job says of its rows, and the bytes of their mask and codes."""
    bits = code_bits(rows.children)
    about = {
        "axes": rows.axes,
        "columns": rows.columns,
        "children": rows.children,
        "keep_row": tuple(rows.columns * step for step in rows.keep),
        "owner_row": tuple(rows.columns * step for step in rows.owner),
        "code_bits": bits,
    }
    keep, owner = (rows.columns * rows.span(steps) for steps in (rows.keep, rows.owner))
    return about, packed_bytes(keep, 1), packed_bytes(owner, bits) if rows.children > 1 else 0


def _run(
    function: str,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    rows: Rows,
    **more: Any,
) -> None:
    """Calls a function of `packed.c`, which reads and writes no further than checked here.

    Raises:
        CheckpointError: Values, mask and codes do not fit each other.
    """
    library = native.library("packed")
    assert library is not None
    about, keep_bytes, owner_bytes = _about(rows)
    if keep is not None:
        _check("mask", keep, torch.uint8, keep_bytes)
    if owner is not None or owner_bytes:
        _check("codes", owner, torch.uint8, owner_bytes)
    _check("packed weights", weight, weight.dtype, weight.numel())
    job = _Job(
        values=weight.data_ptr(),
        count=weight.numel(),
        width=weight.element_size(),
        keep=None if keep is None else keep.data_ptr(),
        keep_bytes=0 if keep is None else keep_bytes,
        owner=None if owner is None else owner.data_ptr(),
        owner_bytes=owner_bytes,
        threads=torch.get_num_threads(),
        **about,
        **more,
    )
    getattr(library, function)(ctypes.byref(job))
    if job.found != weight.numel():
        raise CheckpointError(
            f"The mask and the codes place {job.found} weights, but there are {weight.numel()}: "
            "they were changed after loading. Load the checkpoint again."
        )


def _check(name: str, tensor: Tensor | None, dtype: torch.dtype, count: int) -> None:
    if (
        tensor is None
        or (tensor.dtype, tensor.numel()) != (dtype, count)
        or not (tensor.is_cpu and tensor.is_contiguous())
    ):
        found = tensor if tensor is None else (tensor.dtype, tensor.numel(), tensor.device)
        raise CheckpointError(
            f"The {name} must be {count} of {dtype} side by side on the CPU, not {found}. Load the "
            "checkpoint again."
        )


def _move(
    function: str,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    rows: Rows,
    matrix: Tensor,
) -> None:
    _check("matrix", matrix, weight.dtype, math.prod(rows.shape))
    steps = [matrix.stride(rows.order.index(axis)) for axis in range(4)]
    more = {"dense": matrix.data_ptr(), "dense_row": tuple(steps[:3]), "dense_child": steps[3]}
    _run(function, weight, keep, owner, rows, **more)


def _sums(
    x: Tensor, weight: Tensor, keep: Tensor | None, owner: Tensor | None, rows: Rows
) -> Tensor:
    tokens, inputs, columns = x.shape
    of_rows = rows.span(rows.inputs)
    own = rows.children > 1 and of_rows == 1 and inputs == rows.children
    fits = columns == rows.columns and (own or inputs == of_rows) and weight.dtype in _DTYPES
    if not fits or not 0 < rows.children <= MOST_CHILDREN:
        raise ValueError(f"inputs {tuple(x.shape)} and weights of {weight.dtype} do not fit {rows}")
    at_once = 4 if rows.children <= 4 else 2  # or fewer, but then a divisor
    most = max(1, CACHED // (4 * inputs * columns * at_once)) * at_once
    if tokens > most:
        return torch.cat([_sums(some, weight, keep, owner, rows) for some in x.split(most)])
    missing = (
        *(0, -columns % _WORD),
        *(0, (1 << (inputs - 1).bit_length()) - inputs if own else 0),
        *(0, -tokens % at_once if tokens > 1 else 0),
    )
    x = x.resolve_neg().float()
    x = functional.pad(x, missing) if any(missing) else x
    x = x.reshape(len(x), of_rows, x.shape[1] // of_rows, x.shape[2] // _WORD, _WORD).permute(
        1, 3, 0, 2, 4
    )
    x = x.contiguous()
    result = torch.empty(
        (x.shape[2], rows.children, *rows.axes), dtype=torch.float32, device=x.device
    )
    if tokens:
        more = {"x": x.data_ptr(), "tokens": x.shape[2], "own": own, "sums": result.data_ptr()}
        x_row = tuple(step * x.stride(0) for step in rows.inputs)
        _run("fpe_packed_sums", weight.contiguous(), keep, owner, rows, x_row=x_row, **more)
    return result[:tokens]


def _compiled_sums(
    x: Tensor, weight: Tensor, keep: Tensor | None, owner: Tensor | None, rows: Sequence[int]
) -> Tensor:
    return _sums(x, weight, keep, owner, _unflattened(rows))


_operator = torch.library.custom_op("fpe_hf::packed_sums", _compiled_sums, mutates_args=())


@_operator.register_fake
def _shape(
    x: Tensor, weight: Tensor, keep: Tensor | None, owner: Tensor | None, rows: Sequence[int]
) -> Tensor:
    about = _unflattened(rows)
    return x.new_empty((x.shape[0], about.children, *about.axes), dtype=torch.float32)


def _flattened(rows: Rows) -> list[int]:
    """As a registered operator takes it."""
    axes, columns, children, *steps = rows
    return [*axes, columns, children, *itertools.chain(*steps)]


def _unflattened(n: Sequence[int]) -> Rows:
    return Rows(
        (n[0], n[1], n[2]), n[3], n[4], (n[5], n[6], n[7]), (n[8], n[9], n[10]),
        (n[11], n[12], n[13]), (n[14], n[15], n[16], n[17]),
    )  # fmt: skip


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_native() -> bool:
    return native.library("packed") is not None
