"""A block of the `block` layout, described for C: `block.h`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..planning import BlockSpec
from .block import is_coupled

_Pointer, _Long, _Double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class CBlock(ctypes.Structure):
    """`Block` of `block.h`."""

    _fields_ = [
        *(
            (name, _Long)
            for name in "tokens in_features out_features alpha tiles ups sources replicate coupled "
            "equal child_bias interleaved kind activated gate chunk part threads".split()
        ),
        *((name, _Double) for name in ("scale", "coupling")),
        *((name, _Pointer) for name in ("starts", "reads", "writes")),
    ]


class CUp(ctypes.Structure):
    """`Up` of `block.h`."""

    _fields_ = [
        (name, _Pointer)
        for name in "x inputs weight bias coupling to_x to_weight to_bias to_coupling".split()
    ]


class CDown(ctypes.Structure):
    """`Down` of `block.h`."""

    _fields_ = [(name, _Pointer) for name in "outputs weight bias to_weight".split()]


@lru_cache(maxsize=1024)
def _tables(spec: BlockSpec) -> tuple[ctypes.Array[Any], ...]:
    """First parents of the tiles, and what each child reads and writes."""
    starts = [start for start, _ in spec.tiles] + [spec.all_parents]
    return tuple(
        (_Long * len(counts))(*counts) for counts in (starts, spec.child_inputs, spec.child_outputs)
    )


class Description:
    """Tensors of a block as C reads them.

    Its structures point to the tensors, which stay alive as long as it does.
    """

    def __init__(self) -> None:
        self._held: list[Any] = []

    def block(self, spec: BlockSpec, **more: int | float) -> CBlock:
        """A block.

        Args:
            spec: The block.
            **more: Fields that say what to do with it.
        """
        tables = _tables(spec)
        self._held.append(tables)
        starts, reads, writes = map(ctypes.addressof, tables)
        coupled = is_coupled(spec)
        shared = spec.bias == "shared" or not any(spec.up_biases)
        return CBlock(
            in_features=spec.in_features,
            out_features=spec.out_features,
            alpha=spec.alpha,
            tiles=spec.tile_count,
            ups=len(spec.ups),
            sources=spec.sources_per_up,
            replicate=spec.fan_out == "replicate",
            coupled=coupled,
            equal=coupled and spec.coupling == 1.0 and not spec.learn_coupling and shared,
            child_bias=not shared,
            interleaved=spec.fused == "interleaved",
            coupling=spec.coupling,
            starts=starts,
            reads=reads,
            writes=writes,
            **more,
        )

    def up(self, tensors: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> CUp:
        """An up projection.

        Args:
            tensors: What it reads, its index, weight, bias and coupling.
            grads: Theirs, to be written; there is none of the index.
        """
        x, inputs, *numbers = tensors
        to_x, _, *to_numbers = grads
        assert inputs is not None
        return CUp(*map(self._at, (x, inputs.int(), *numbers, to_x, *to_numbers)))

    def down(
        self, spec: BlockSpec, tensors: Sequence[Tensor | None], to_weight: Tensor | None
    ) -> CDown:
        """A down projection.

        Args:
            spec: The block.
            tensors: Its index, weight and bias.
            to_weight: Gradient of the weight, to be written.
        """
        outputs, *numbers = tensors
        if outputs is None:
            every = torch.arange(spec.out_features, dtype=torch.int32)
            outputs = every.expand(spec.tile_count, -1).contiguous()
        return CDown(*map(self._at, (outputs.int(), *numbers, to_weight)))

    def _at(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._held.append(tensor)
        return tensor.data_ptr()
