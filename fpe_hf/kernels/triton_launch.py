"""What launching a Triton kernel takes, whichever it is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def precision() -> str:
    """How float32 is multiplied, as for PyTorch's own products on GPUs."""
    # Not `allow_tf32`: reading that raises if somebody has set the newer attribute.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context for launches: they go to the current device, which may be another one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def with_unit_stride(matrix: Tensor) -> Tensor:
    """Rows may lie anywhere, but the numbers of a row lie side by side."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
