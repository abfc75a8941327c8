"""Which way a projection or an MLP is computed, and why: the one place that decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..planning import BlockSpec
from . import native, packed
from .ordinary import is_ordinary

FEWEST_TOKENS = 16
"""Fewer tokens are computed projection by projection: their hidden activations are small."""

FEWEST_PRODUCTS = 1_000_000
"""Multiply-adds of an MLP from which computing it as one operation pays for its bookkeeping."""


def may_pay(x: Tensor) -> bool:
    """Whether there are tokens enough to ask `may_fuse`."""
    return not x.is_nested and x.shape[:-1].numel() >= FEWEST_TOKENS


def may_fuse(x: Tensor, spec: BlockSpec, operands: Sequence[Tensor | None]) -> bool:
    """Whether an MLP of the `block` layout is computed as one operation (`fused.py`) rather than
    projection by projection (`block.py`).

    It is on a CPU, in one dtype, from some tokens on, and if nobody traces or transforms what is
    done; autocast is left to PyTorch's own operations.

    Args:
        x: What the MLP reads `[..., in_features]`.
        spec: The block.
        operands: The tensors of its projections.
    """
    if not x.is_cpu or x.shape[-1] != spec.in_features:
        return False
    given = [tensor for tensor in operands if tensor is not None]
    floats = [tensor for tensor in given if tensor.is_floating_point()]
    return (
        may_pay(x)
        and x.shape[:-1].numel() * spec.nonzeros >= FEWEST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and all(tensor.is_cpu for tensor in given)
        and all(tensor.dtype == x.dtype for tensor in floats)
        and is_ordinary(x, *given)
    )


def explain(layout: str) -> str:
    """How blocks of a layout are computed on this machine's CPU, in words.

    Args:
        layout: `"element"` or `"block"`.
    """
    if layout == "block":
        return (
            f"On a CPU, from {FEWEST_TOKENS} tokens on, a block is one operation if its module is "
            "known to do nothing else with it, and no hook, autocast or compiler looks inside; "
            "otherwise it is computed projection by projection."
        )
    filled = "the element layout fills in its matrix for every pass"
    reason = native.unavailable("packed")
    if reason is None:
        return f"On a CPU, above {packed.MOST_TOKENS} tokens and in training, {filled}."
    return f"On a CPU {filled}; its kernel is not available: {reason}"
