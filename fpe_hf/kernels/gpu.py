"""Widened projections on GPUs: whether the kernels can take a call, and the calls.

The functions take tensors and the shape of a projection, any number of leading dimensions, and
follow autocast. They give the same results on any device; elsewhere they are only slower.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from . import gpu_ops, gpu_plain
from .gpu_shapes import MAX_CHILDREN, BlockShape, ElementShape

ACTIVATIONS = ("none", "relu", "silu", "gelu", "gelu_tanh")
"""Activations that `up` can apply."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels compute with."""

FEW_TOKENS = 16
"""The `element` kernel takes up to this many tokens."""

HAS_TRITON = find_spec("triton") is not None


def usable(x: Tensor, weight: Tensor, alpha: int) -> bool:
    """Whether the kernels can take a projection. Cheap, and constant under `torch.compile`.

    Args:
        x: Its input.
        weight: Its packed weights.
        alpha: Its children.
    """
    if not (HAS_TRITON and x.is_cuda and weight.is_cuda and alpha <= MAX_CHILDREN):
        return False
    # Older GPUs lack bfloat16 and the shared memory; AMD's have not been tried.
    if torch.version.cuda is None or torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    if torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda") in DTYPES
    return x.dtype in DTYPES and x.dtype == weight.dtype


def element_usable(x: Tensor, weight: Tensor, alpha: int) -> bool:
    """Whether the `element` kernel can take a projection: few tokens, and no gradients wanted.

    Args:
        x: Its input.
        weight: Its packed weights.
        alpha: Its children.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    return usable(x, weight, alpha) and x.numel() <= FEW_TOKENS * x.shape[-1]


def up(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor,
    bias: Tensor | None,
    shape: BlockShape,
    *,
    coupling: Tensor | float = 0.0,
    activation: str = "none",
) -> Tensor:
    """An up projection in the `block` layout, and optionally the activation after it.

    Args:
        x: `[..., features]`.
        weight: Packed weights `[weights]`.
        inputs: Inputs of every tile, child after child `[tiles, indexed]`, any integers.
        bias: One per source and parent, `[sources * parents]`, or per source and hidden neuron,
            `[wide]`, or `None`.
        shape: `BlockShape.of_up(spec)`.
        coupling: A number, or one per source and parent `[sources, parents]`. 0 and 1 cost
            nothing, others some elementwise operations.
        activation: One of `ACTIVATIONS`.

    Returns:
        `[..., wide]`.

    Raises:
        ValueError: The activation is none of these.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}; accepted: {', '.join(ACTIVATIONS)}.")
    x, weight, bias = _under_autocast(x, weight, bias)
    flat = x.reshape(-1, shape.features)
    fixed = isinstance(coupling, float) and coupling in (0.0, 1.0)
    wanted = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)
    )
    out: Tensor
    out, _ = gpu_ops.gather_blocks(
        flat,
        inputs,
        weight,
        bias if fixed else None,
        shape.to_list(),
        coupling == 1.0 if fixed else False,
        activation if fixed else "none",
        fixed and wanted and activation != "none",
    )
    if not fixed:
        out = gpu_plain.activate(_couple(out, coupling, bias, shape), activation)
    return out.reshape(*x.shape[:-1], shape.wide)


def down(
    hidden: Tensor, weight: Tensor, outputs: Tensor, bias: Tensor | None, shape: BlockShape
) -> Tensor:
    """A down projection in the `block` layout.

    A replicated fan-out that writes all outputs in order needs no index; it is an ordinary
    matrix product for each tile, and not meant for this function.

    Args:
        hidden: `[..., wide]`.
        weight: Packed weights `[weights]`.
        outputs: Outputs of every tile, child after child `[tiles, indexed]`, any integers.
        bias: `[features]` or `None`.
        shape: `BlockShape.of_down(spec)`.

    Returns:
        `[..., features]`.
    """
    hidden, weight, bias = _under_autocast(hidden, weight, bias)
    flat = hidden.reshape(-1, shape.wide)
    out: Tensor = gpu_ops.scatter_blocks(flat, outputs, weight, bias, shape.to_list(), False)
    return out.reshape(*hidden.shape[:-1], shape.features)


def element(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    starts: Tensor | None,
    bias: Tensor | None,
    shape: ElementShape,
    *,
    coupling: Tensor | None = None,
) -> Tensor:
    """A projection in the `element` layout, for few tokens and without gradients.

    Args:
        x: `[..., inputs]`, or hidden neurons, child after child, `[..., alpha * parents]`.
        weight: Packed weights.
        keep: Packed mask of kept entries, or `None` if all are.
        owner: Packed child of every entry, or `None` if every child has a copy.
        starts: `row_starts(keep, shape)` if there is a mask: worth keeping between calls.
        bias: As for `up` and `down`.
        shape: `ElementShape.of_up(spec, bits)` or `ElementShape.of_down(spec, bits)`.
        coupling: Up projections: one number `[1]`, or one per source and parent; `None` for 0.

    Returns:
        `[..., outputs]`.
    """
    x, weight, bias = _under_autocast(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    out: Tensor = gpu_ops.element_product(
        flat, weight, keep, owner, starts, bias, coupling, shape.to_list()
    )
    return out.reshape(*x.shape[:-1], shape.outputs)


row_starts = gpu_plain.row_starts


def _couple(z: Tensor, coupling: Tensor | float, bias: Tensor | None, shape: BlockShape) -> Tensor:
    """Adds coupled sums and a bias to what children see on their own, `[tokens, wide]`."""
    own = gpu_plain.by_source(z, shape)
    others = gpu_plain.give_children(gpu_plain.sum_children(own, shape), shape) - own
    if isinstance(coupling, Tensor):
        coupling = gpu_plain.give_children(coupling.to(z.dtype), shape)
    out = own + coupling * others
    if bias is not None:
        per_child = bias.view(shape.sources, -1)
        if bias.numel() != shape.wide:
            per_child = gpu_plain.give_children(per_child, shape)
        out = out + per_child
    return (out.transpose(1, 2) if shape.interleaved else out).flatten(1)


def _under_autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors as autocast wants them for a matrix product."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
