"""Whether a call may take a short cut: plain tensors, and nobody who watches what is done."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def is_ordinary(*tensors: Tensor | None) -> bool:
    """Whether tensors are what memory holds, and their program is run rather than traced.

    Not so for fake, distributed and other special tensors, within `torch.compile`, `torch.export`,
    `torch.jit.trace`, transforms of `torch.func`, batched gradients, forward-mode differentiation
    and under a dispatch mode.
    """
    return (
        not torch.compiler.is_compiling()
        and all(type(t) in (Tensor, nn.Parameter, type(None)) for t in tensors)
        and not any(
            t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors
        )
        and not torch._C._is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )
