"""One projection of an MLP block, and the stock module or parameter it becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..belongings import hand_over, mark_like
from ..discovery import MLPBlock
from ..layers import EXPERTS_STOCKS, FPELayer, UpLayer, empty_twin
from ..linear import bias_of, make_bare, make_linear, weight_of
from ..modules import host_of, stock_kind


@dataclass(frozen=True)
class Projection:
    """A projection of an MLP block, widened or not.

    Attributes:
        module: The module itself (if experts are stacked and not widened, their host).
        weight: Name of its weight in the model.
        bias: Name of its bias, if it has one.
        is_up: Whether hidden neurons are its outputs (else its inputs).
        parents: Hidden neurons of the dense parent.
        hidden: Hidden neurons it needs in the dense model.
        inputs: Inputs of the block.
        fused: As in `BlockSpec`.
        stock: The kind of its stock module (see `fpe_hf.linear`).
        merged: Whether one neuron stands for all children of a parent.
    """

    module: nn.Module
    weight: str
    bias: str | None
    is_up: bool
    parents: int
    hidden: int
    inputs: int
    fused: str | None
    stock: str
    merged: bool = False

    @classmethod
    def of_layer(cls, name: str, layer: FPELayer) -> Projection:
        """A widened projection.

        Args:
            name: Dotted name of the layer.
            layer: The layer.
        """
        spec = layer.spec
        return cls(
            module=layer,
            weight=layer.key(name, "weight"),
            bias=None if layer.bias is None else layer.key(name, "bias"),
            is_up=isinstance(layer, UpLayer),
            parents=spec.parents,
            hidden=spec.hidden,
            inputs=spec.in_features,
            fused=spec.fused,
            stock=layer.stock,
        )

    @classmethod
    def all_of_block(cls, model: nn.Module, block: MLPBlock) -> Iterator[Projection]:
        """The projections of a block that is not widened."""
        for place, name in enumerate((*block.ups, block.down)):
            if block.experts > 1:
                module, weight = host_of(model, name)[0], name
                bias, stock = block.bias_names[place], EXPERTS_STOCKS[block.transposed[place]]
            else:
                module, weight = model.get_submodule(name), f"{name}.weight"
                bias = None if bias_of(module) is None else f"{name}.bias"
                stock = stock_kind(module)
            is_up, width = name != block.down, block.parents
            inputs = block.in_features
            yield cls(module, weight, bias, is_up, width, width, inputs, block.fused, stock)

    @property
    def stacked(self) -> bool:
        """Whether it is a parameter that stacks experts, rather than a module."""
        return self.stock in EXPERTS_STOCKS

    @property
    def hidden_axis(self) -> int:
        """The axis of its stock weight along which the hidden neurons lie."""
        turned = self.stock in ("conv1d", "transposed_experts")
        return int(self.stacked) + int(self.is_up == turned)

    def hidden_in(self, shape: torch.Size) -> int:
        """Hidden neurons of a stock projection whose weight has this shape."""
        return shape[self.hidden_axis] // (2 if self.is_up and self.fused else 1)

    def merge(self) -> Projection:
        """The same projection as wide as its dense parent: for children that are always equal."""
        return dataclasses.replace(self, hidden=self.parents, merged=True)

    @torch.no_grad()
    def dense(self, hidden: int) -> nn.Module:
        """The stock module, with neurons of zeros added up to `hidden`."""
        weight, bias = self._padded(hidden)
        module = make_linear(weight, bias, self.stock)
        if isinstance(self.module, FPELayer):
            bare: nn.Module = empty_twin(self.module)
        else:
            bare = make_bare(self.stock)
        hand_over(self.module, module, bare)
        return module

    @torch.no_grad()
    def put_stack(self, model: nn.Module, hidden: int) -> None:
        """Puts the stock parameters, with neurons of zeros up to `hidden`, into a model."""
        weight, bias = self._padded(hidden)
        if self.stock == "transposed_experts":
            weight = weight.mT.contiguous()
        for name, tensor in ((self.weight, weight), (self.bias, bias)):
            if name is not None and tensor is not None:
                host, own = host_of(model, name)
                old = host.get_parameter(own)
                new = host._parameters[own] = nn.Parameter(tensor)
                mark_like(old, new)

    def _padded(self, hidden: int) -> tuple[Tensor, Tensor | None]:
        """Weight (`[out, in]` matrices) and bias with neurons of zeros added up to `hidden`."""
        weight, bias = self._numbers()
        missing = hidden - self.hidden
        if self.is_up:
            weight = self._pad_rows(weight, missing)
            bias = None if bias is None else self._pad_rows(bias, missing)
        else:
            weight = nn.functional.pad(weight, (0, missing))
        return weight.detach().clone(), None if bias is None else bias.detach().clone()

    def _numbers(self) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.module, FPELayer):
            if self.merged:
                return self.module.merged_weight(), self.module.merged_bias()
            return self.module.dense_weight(), self.module.dense_bias()
        if not self.stacked:
            return weight_of(self.module), bias_of(self.module)
        weight = self.module.get_parameter(self.weight.rpartition(".")[2])
        bias = None
        if self.bias is not None:
            bias = self.module.get_parameter(self.bias.rpartition(".")[2])
        return (weight.mT if self.stock == "transposed_experts" else weight), bias

    def _pad_rows(self, rows: Tensor, missing: int) -> Tensor:
        axis = 1 if self.stacked else 0
        shape = (*rows.shape[:axis], missing, *rows.shape[axis + 1 :])
        padding = rows.new_zeros(shape)
        if self.fused == "halves":
            gate, up = rows.chunk(2, axis)
            return torch.cat([gate, padding, up, padding], axis)
        return torch.cat([rows, padding, padding] if self.fused else [rows, padding], axis)
