"""A few tokens in the `block` layout in C, on the CPU in float32 or bfloat16: `few.c`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..planning import BlockSpec
from . import native
from .described import Description
from .ordinary import is_ordinary

MOST_TOKENS = {torch.float32: 12, torch.bfloat16: 16}
"""Beyond this many tokens, other products are faster."""


def usable(x: Tensor, width: int, *numbers: Tensor | None) -> bool:
    """Whether the kernel can take it.

    Args:
        x: What the projection reads `[..., width]`.
        width: Its inputs.
        *numbers: Its parameters.
    """
    if torch.compiler.is_compiling() or not x.is_cpu:  # before any number becomes a condition
        return False
    floats = [x, *(t for t in numbers if t is not None)]
    return (
        width <= x.numel() <= width * MOST_TOKENS.get(x.dtype, 0)
        and all(t.dtype == x.dtype and t.is_cpu for t in floats)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in floats))
        and is_ordinary(*floats)
        and all(t.is_contiguous() for t in floats[1:])
        and not torch.is_autocast_enabled("cpu")
        and native.library("few") is not None
    )


class FewUp(Description):
    """An up projection.

    Args:
        spec: The block.
        inputs: Its index.
        weight: Its weights.
        bias: Its bias or `None`.
        coupling: Its trainable coupling or `None`.
    """

    def __init__(
        self,
        spec: BlockSpec,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        coupling: Tensor | None,
    ) -> None:
        super().__init__()
        self._block = self.block(spec)
        self._up = self.up((None, inputs, weight, bias, coupling), (None,) * 5)
        self._width = spec.in_features
        self._hidden = spec.sources_per_up * spec.hidden
        self._reads = sum(spec.child_inputs)

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., in_features]` -> `[..., sources * hidden]`."""
        tokens = x.numel() // self._width
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self._hidden)
        half = x.dtype == torch.bfloat16
        read = x.new_empty(tokens * self._reads)
        whole = x.new_empty(out.numel() if half else 0, dtype=torch.float32)
        library = native.library("few")
        assert library is not None
        library.fpe_up(
            ctypes.byref(self._block),
            ctypes.byref(self._up),
            half,
            tokens,
            torch.get_num_threads(),
            x.data_ptr(),
            out.data_ptr(),
            read.data_ptr(),
            whole.data_ptr(),
        )
        return out


class FewDown(Description):
    """A down projection.

    Args:
        spec: The block.
        outputs: Its index or `None`.
        weight: Its weights.
        bias: Its bias or `None`.
    """

    def __init__(
        self, spec: BlockSpec, outputs: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__()
        self._block = self.block(spec)
        self._down = self.down(spec, (outputs, weight, bias), None)
        self._width, self._outputs = spec.hidden, spec.out_features

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., out_features]`."""
        tokens = hidden.numel() // self._width
        hidden = hidden.contiguous()
        out = hidden.new_empty(*hidden.shape[:-1], self._outputs)
        half = hidden.dtype == torch.bfloat16
        whole = hidden.new_empty(out.numel() if half else 0, dtype=torch.float32)
        library = native.library("few")
        assert library is not None
        library.fpe_down(
            ctypes.byref(self._block),
            ctypes.byref(self._down),
            half,
            tokens,
            torch.get_num_threads(),
            hidden.data_ptr(),
            out.data_ptr(),
            whole.data_ptr(),
        )
        return out
