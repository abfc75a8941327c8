"""The GPU kernels as registered operators with gradients, so that they pass through autograd,
`torch.compile` and `torch.export` as they are.

On a GPU they run Triton kernels. If one fails, they log a warning and from then on run plain
operations, as they do on any other device.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import gpu_plain
from .gpu_shapes import BlockShape, ElementShape

_logger = logging.getLogger(__name__)
_Context = Any
_failed = False
_checked: set[tuple[str, torch.dtype]] = set()
_TOLERANCE = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Of results, in units of the largest: float32 products may be made of TF32 ones."""


def _runs_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and not _failed


def _run(module: str, plain: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls the function of a Triton module that is named like a plain one, or the plain one.

    The first result of each function and dtype is held against that of plain operations.
    """
    if not _runs_triton(args[0]):
        return plain(*args, **options)
    try:
        kernels = importlib.import_module(f".{module}", __package__)
        found = getattr(kernels, plain.__name__)(*args, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways
        _give_up(f"failed ({type(error).__name__}: {error})")
        return plain(*args, **options)
    case = (plain.__name__, args[0].dtype)
    if case in _checked or (args[0].is_cuda and torch.cuda.is_current_stream_capturing()):
        return found
    _checked.add(case)
    expected = plain(*args, **options)
    if _agree(found, expected):
        return found
    _give_up(f"computed something else in {plain.__name__} with {args[0].dtype}")
    return expected


def _give_up(reason: str) -> None:
    global _failed
    _failed = True
    _logger.warning(
        "A Triton kernel %s. Widened layers use plain PyTorch operations from now on: slower.",
        reason,
    )


def _agree(found: Any, expected: Any) -> bool:
    """Whether results are the same but for rounding."""
    pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
    for own, other in pairs:
        if own is None or other is None or not own.numel():
            continue
        error = (own.double() - other.double()).abs().max()
        scale = other.double().abs().max()
        if not bool(error <= _TOLERANCE[own.dtype] * scale.clamp(min=1e-30)):
            return False
    return True


@torch.library.custom_op(
    "fpe_hf::gather_blocks",
    mutates_args=(),
    schema="(Tensor narrow, Tensor index, Tensor weight, Tensor? bias, int[] shape, bool coupled, "
    "str activation, bool keep_pre) -> (Tensor, Tensor)",
)
def gather_blocks(
    narrow: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    coupled: bool,
    activation: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    """See `triton_block.gather_blocks`; what is not kept comes back empty."""
    out, pre = _run(
        "triton_block",
        gpu_plain.gather_blocks,
        narrow,
        index,
        weight,
        bias,
        BlockShape.from_list(shape),
        coupled=coupled,
        activation=activation,
        keep_pre=keep_pre,
    )
    return out, narrow.new_empty(0) if pre is None else pre


@gather_blocks.register_fake
def _(
    narrow: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    coupled: bool,
    activation: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    out = narrow.new_empty(narrow.shape[0], BlockShape.from_list(shape).wide)
    return out, torch.empty_like(out) if keep_pre else narrow.new_empty(0)


@torch.library.custom_op(
    "fpe_hf::scatter_blocks",
    mutates_args=(),
    schema="(Tensor wide, Tensor index, Tensor weight, Tensor? bias, int[] shape, bool shared) "
    "-> Tensor",
)
def scatter_blocks(
    wide: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    shared: bool,
) -> Tensor:
    """See `triton_block.scatter_blocks`."""
    blocks = BlockShape.from_list(shape)
    plain = gpu_plain.scatter_blocks
    out: Tensor = _run("triton_block", plain, wide, index, weight, bias, blocks, shared=shared)
    return out


@scatter_blocks.register_fake
def _(
    wide: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    shared: bool,
) -> Tensor:
    return wide.new_empty(wide.shape[0], BlockShape.from_list(shape).features)


@torch.library.custom_op(
    "fpe_hf::weight_blocks",
    mutates_args=(),
    schema="(Tensor wide, Tensor narrow, Tensor index, int[] shape, bool shared) -> Tensor",
)
def weight_blocks(
    wide: Tensor, narrow: Tensor, index: Tensor, shape: Sequence[int], shared: bool
) -> Tensor:
    """See `triton_block.weight_blocks`."""
    blocks = BlockShape.from_list(shape)
    plain = gpu_plain.weight_blocks
    out: Tensor = _run("triton_block", plain, wide, narrow, index, blocks, shared=shared)
    return out


@weight_blocks.register_fake
def _(wide: Tensor, narrow: Tensor, index: Tensor, shape: Sequence[int], shared: bool) -> Tensor:
    return wide.new_empty(BlockShape.from_list(shape).weights)


@torch.library.custom_op(
    "fpe_hf::element_product",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? keep, Tensor? owner, Tensor? starts, Tensor? bias, "
    "Tensor? coupling, int[] shape) -> Tensor",
)
def element_product(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    starts: Tensor | None,
    bias: Tensor | None,
    coupling: Tensor | None,
    shape: Sequence[int],
) -> Tensor:
    """See `triton_element.element_product`; without gradients."""
    elements = ElementShape.from_list(shape)
    plain = gpu_plain.element_product
    out: Tensor = _run(
        "triton_element", plain, x, weight, keep, owner, starts, bias, coupling, elements
    )
    return out


@element_product.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    owner: Tensor | None,
    starts: Tensor | None,
    bias: Tensor | None,
    coupling: Tensor | None,
    shape: Sequence[int],
) -> Tensor:
    return x.new_empty(x.shape[0], ElementShape.from_list(shape).outputs)


def _save_gather(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    narrow, index, weight, bias, ctx.shape, ctx.coupled, ctx.activation, _ = inputs
    ctx.bias_numbers = None if bias is None else bias.numel()
    ctx.save_for_backward(narrow, index, weight, output[1])


def _gather_gradients(ctx: _Context, d_out: Tensor, d_pre: Tensor) -> tuple[Any, ...]:
    narrow, index, weight, pre = ctx.saved_tensors
    shape = BlockShape.from_list(ctx.shape)
    wide = _before_activation(d_out, pre, ctx.activation)
    d_bias = None
    if ctx.needs_input_grad[3]:
        per_child = gpu_plain.by_source(wide, shape).sum(0, dtype=_sum_type(wide))
        if ctx.bias_numbers != shape.wide:
            per_child = gpu_plain.sum_children(per_child, shape)
        d_bias = per_child.flatten().to(weight.dtype)
    if ctx.coupled:
        wide = gpu_plain.sum_children(gpu_plain.by_source(wide, shape), shape).flatten(1)
    d_narrow = d_weight = None
    if ctx.needs_input_grad[0]:
        d_narrow = scatter_blocks(wide, index, weight, None, ctx.shape, ctx.coupled)
    if ctx.needs_input_grad[2]:
        d_weight = weight_blocks(wide, narrow, index, ctx.shape, ctx.coupled)
    return d_narrow, None, d_weight, d_bias, None, None, None, None


def _save_scatter(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    wide, index, weight, _, ctx.shape, _ = inputs
    ctx.save_for_backward(wide, index, weight)


def _scatter_gradients(ctx: _Context, d_out: Tensor) -> tuple[Any, ...]:
    wide, index, weight = ctx.saved_tensors
    d_wide = d_weight = d_bias = None
    if ctx.needs_input_grad[0]:
        d_wide, _ = gather_blocks(d_out, index, weight, None, ctx.shape, False, "none", False)
    if ctx.needs_input_grad[2]:
        d_weight = weight_blocks(wide, d_out, index, ctx.shape, False)
    if ctx.needs_input_grad[3]:
        d_bias = d_out.sum(0, dtype=_sum_type(d_out)).to(weight.dtype)
    return d_wide, None, d_weight, d_bias, None, None


def _before_activation(d_out: Tensor, pre: Tensor, activation: str) -> Tensor:
    """The gradient of what an activation was applied to."""
    d_pre: Tensor = d_out
    if activation == "relu":
        d_pre = d_out * (pre > 0)
    elif activation == "silu":
        d_pre = torch.ops.aten.silu_backward(d_out, pre)
    elif activation == "gelu":
        d_pre = torch.ops.aten.gelu_backward(d_out, pre)
    elif activation == "gelu_tanh":
        d_pre = torch.ops.aten.gelu_backward(d_out, pre, approximate="tanh")
    return d_pre


def _sum_type(tensor: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


gather_blocks.register_autograd(_gather_gradients, setup_context=_save_gather)
scatter_blocks.register_autograd(_scatter_gradients, setup_context=_save_scatter)
