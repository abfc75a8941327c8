"""Whether a call may take a short cut: plain tensors, and nobody who watches what is done."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext


def is_ordinary(*tensors: Tensor | None) -> bool:
    """Whether tensors are what memory holds, and their program is run rather than traced.

    Not so for fake, distributed and other special tensors, batches of gradients, within
    `torch.compile`, `torch.export`, `torch.jit.trace`, transforms of `torch.func`, forward-mode
    differentiation and under a dispatch or function mode.
    """
    return (
        is_readable(*tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and not _functions_are_watched()
    )


def _functions_are_watched() -> bool:
    """Whether there is a function mode other than that of `torch.set_default_device`."""
    if torch._C._len_torch_function_stack() == 0:
        return False
    modes = torch.overrides._get_current_function_mode_stack()
    return not all(isinstance(mode, DeviceContext) for mode in modes)


def is_readable(*tensors: Tensor | None) -> bool:
    """The same, but under any dispatch mode."""
    return (
        not torch.compiler.is_compiling()
        and all(t is None or _is_in_memory(t) for t in tensors)
        and not torch._C._is_tracing()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def _is_in_memory(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not (
        # What jacobian(vectorize=True) and is_grads_batched hand to the backward pass.
        torch._C._functorch.is_legacy_batchedtensor(tensor)
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )
