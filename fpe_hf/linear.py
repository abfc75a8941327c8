"""The linear modules that can be replaced, and the orientation of their weights.

A *stock* is a word for such a kind of module: `"linear"` for `nn.Linear` and what computes the
same, `"conv1d"` for transformers' `Conv1D`, `"pointwise1d"` and `"pointwise2d"` for convolutions
that read one position at a time.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

CHANNEL_AXES = {"linear": -1, "conv1d": -1, "pointwise1d": -2, "pointwise2d": -3}
"""Stock -> the axis of its inputs and outputs along which the channels lie."""

_POINTWISE: dict[type[nn.Module], str] = {nn.Conv1d: "pointwise1d", nn.Conv2d: "pointwise2d"}
_CONVOLUTIONS = {stock: kind for kind, stock in _POINTWISE.items()}

_SAME_AS_LINEAR = ("transformers.models.falcon.modeling_falcon.FalconLinear",)
"""Subclasses of `nn.Linear` that compute the same in other words."""


def conv1d_type() -> type[nn.Module] | None:
    """transformers' `Conv1D` (GPT-2: weight `[in, out]`), if transformers is loaded at all."""
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    return getattr(pytorch_utils, "Conv1D", None)


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is exactly transformers' `Conv1D`."""
    return type(module) is conv1d_type()


def stock_of(module: nn.Module) -> str | None:
    """The stock of a module, or `None` if it is no linear projection that can be replaced."""
    if _computes_linear(module):
        return "linear"
    if is_conv1d(module):
        return "conv1d"
    if is_pointwise(module) and module.groups == 1:
        return _POINTWISE[type(module)]
    return None


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear projection that can be replaced."""
    return stock_of(module) is not None


def _computes_linear(module: nn.Module) -> bool:
    kind = type(module)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return isinstance(module, nn.Linear) and (
        kind.forward is nn.Linear.forward or name in _SAME_AS_LINEAR
    )


def is_pointwise(module: nn.Module) -> bool:
    """Whether `module` is a convolution that reads one position at a time."""
    if type(module) not in _POINTWISE:
        return False
    conv: Any = module
    one_by_one = set(conv.kernel_size) == set(conv.stride) == {1}
    return one_by_one and conv.padding in ("valid", "same", (0,), (0, 0))


def twin_of(module: nn.Module, other: nn.Module) -> bool:
    """Whether a projection has the very parameters of another: the same in two places."""
    own = {name: id(tensor) for name, tensor in module._parameters.items() if tensor is not None}
    its = {name: id(tensor) for name, tensor in other._parameters.items() if tensor is not None}
    return type(module) is type(other) and bool(own) and own == its


def channel_axis(module: nn.Module) -> int:
    """The axis of a projection's inputs and outputs along which the channels lie."""
    return CHANNEL_AXES[_POINTWISE[type(module)] if is_pointwise(module) else "linear"]


def features(module: nn.Module) -> tuple[int, int]:
    """`(in_features, out_features)` of a linear module."""
    rows, columns = (int(size) for size in module.weight.shape[:2])  # type: ignore[index]
    return (rows, columns) if is_conv1d(module) else (columns, rows)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear module as `[out, in]` (a view)."""
    weight: Any = module.weight
    tensor: Tensor = weight.detach()
    return tensor.t() if is_conv1d(module) else tensor.flatten(1)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear module, `[out]`, or `None`."""
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def make_linear(weight: Tensor, bias: Tensor | None, stock: str = "linear") -> nn.Module:
    """A stock module that computes `x @ weight.T + bias`.

    Args:
        weight: `[out, in]`.
        bias: `[out]` or `None`.
        stock: What to make; a `"conv1d"` always has a bias.
    """
    if stock == "conv1d":
        return _make_conv1d(weight, bias)
    out_features, in_features = weight.shape
    module: Any
    if stock == "linear":
        module = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    else:
        convolution: Any = _CONVOLUTIONS[stock]
        module = convolution(in_features, out_features, 1, bias=bias is not None, device="meta")
    module.weight = nn.Parameter(weight.reshape(module.weight.shape))
    if bias is not None:
        module.bias = nn.Parameter(bias)
    made: nn.Module = module
    return made


def make_bare(stock: str) -> nn.Module:
    """A stock module without memory, for what all of its kind have."""
    return make_linear(torch.empty(1, 1, dtype=torch.float32, device="meta"), None, stock)


def _make_conv1d(weight: Tensor, bias: Tensor | None) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    out_features, in_features = weight.shape
    module: Any = Conv1D(0, 0)
    module.nf, module.nx = out_features, in_features
    module.weight = nn.Parameter(weight.t().contiguous())
    module.bias = nn.Parameter(weight.new_zeros(out_features) if bias is None else bias)
    made: nn.Module = module
    return made
