"""The `block` layout: every child of every tile is a small dense matrix over gathered inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels import block
from ..packing import smallest_int
from ..planning import BlockPlan, BlockSpec
from .base import DownLayer, UpLayer


def check_index(name: str, index: Tensor, limit: int) -> None:
    """Checks that each row of an index buffer holds different indices in `[0, limit)`.

    Raises:
        CheckpointError: Naming the tensor.
    """
    wide = index.long()
    if wide.numel() and (int(wide.min()) < 0 or int(wide.max()) >= limit):
        raise CheckpointError(
            f"tensor {name!r} holds index {int(wide.max())} or {int(wide.min())}, "
            f"out of range [0, {limit})."
        )
    if bool((wide.sort(dim=-1).values.diff(dim=-1) == 0).any()):
        raise CheckpointError(f"tensor {name!r} names the same index twice in a tile.")


def _in_line(blocks: Iterable[Tensor], weight: Tensor, count: int) -> Tensor:
    """Blocks one after the other, `[count]`, each copied once, as they may be large."""
    line, place = weight.new_empty(count, requires_grad=False), 0
    for own in blocks:
        line[place : place + own.numel()].view(own.shape).copy_(own.detach())
        place += own.numel()
    return line


class BlockUp(UpLayer):
    """Up projection in the `block` layout.

    Attributes:
        recompute: Whether, in training, the backward pass computes pre-activations again instead of
            keeping them, if the whole MLP runs as one operation.
        inputs: Inputs of each tile, child after child `[tiles, sum(child_inputs)]`, in the dtype
            of `smallest_int`.
    """

    recompute: bool = False

    inputs: Tensor

    def __init__(
        self,
        spec: BlockSpec,
        index: int,
        stock: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        values = spec.up_weights[index]
        super().__init__(spec, index, stock, values=values, dtype=dtype, device=device)
        shape = (spec.tile_count, sum(spec.child_inputs))
        inputs = torch.empty(shape, dtype=smallest_int(spec.in_features), device=device)
        self.register_buffer("inputs", inputs)

    @classmethod
    def from_parent(
        cls, plan: BlockPlan, index: int, stock: str, weight: Tensor, bias: Tensor | None
    ) -> BlockUp:
        """Cuts a parent's weights `[sources, parents, inputs]` and bias into blocks."""
        layer = cls(plan.spec, index, stock, dtype=weight.dtype, device="meta")
        blocks = (
            weight[:, start:stop, columns.to(weight.device)]  # faster than index_select
            for (start, stop), tile in zip(plan.spec.tiles, plan.inputs, strict=True)
            for columns in tile
        )
        inputs = torch.stack([torch.cat(tile) for tile in plan.inputs])
        tensors = {"inputs": inputs.to(layer.inputs.dtype), **layer.parent_extras(weight, bias)}
        layer.bind({name: t.detach().to(weight.device).clone() for name, t in tensors.items()})
        layer.bind({"weight": _in_line(blocks, weight, layer.weight.numel())})
        return layer

    def project(self, x: Tensor) -> Tensor:
        """`[..., inputs]` -> `[..., sources * hidden]`."""
        return block.up(self.spec, x, self.inputs, self.weight, self.bias, self.coupling)

    def dense_weight(self) -> Tensor:
        return self.merge_sources(
            block.dense_up(self.spec, self.inputs, self.weight, self.coupling)
        )

    def readers(self) -> tuple[Tensor, Tensor]:
        spec, inputs = self.spec, self.inputs.cpu().long()
        child = torch.arange(spec.alpha, dtype=torch.int16, device="cpu")
        sizes = torch.tensor(spec.child_inputs, dtype=torch.int64, device="cpu")
        reader = child.repeat_interleave(sizes).expand(inputs.shape)
        nobody = reader.new_empty(spec.tile_count, spec.in_features)
        first = nobody.fill_(spec.alpha).scatter_reduce(1, inputs, reader, "amin")
        return first, nobody.fill_(-1).scatter_reduce(1, inputs, reader, "amax")

    def check(self, name: str) -> None:
        inputs: Any = self._buffers["inputs"]
        check_index(f"{name}.inputs", inputs, self.spec.in_features)

    def reset_derived(self) -> None:
        self.inputs = self.inputs.to(smallest_int(self.spec.in_features))  # old files: int16


class BlockDown(DownLayer):
    """Down projection in the `block` layout.

    With a replicated fan-out the children of a tile write the same outputs and form one matrix;
    with a partitioned one each child has its own outputs.

    Attributes:
        outputs: Outputs of each tile `[tiles, outputs of a tile]`; `None` if every tile writes all
            outputs in order.
    """

    outputs: Tensor | None

    def __init__(
        self,
        spec: BlockSpec,
        stock: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(spec, stock, values=spec.down_weights, dtype=dtype, device=device)
        self.replicated = spec.fan_out == "replicate"
        self.tile_outputs = spec.child_outputs[0] if self.replicated else sum(spec.child_outputs)
        shape = (spec.tile_count, self.tile_outputs)
        outputs = torch.empty(shape, dtype=smallest_int(spec.out_features), device=device)
        ordered = self.replicated and self.tile_outputs == spec.out_features
        self.register_buffer("outputs", None if ordered else outputs)

    @classmethod
    def from_parent(
        cls, plan: BlockPlan, stock: str, weight: Tensor, bias: Tensor | None
    ) -> BlockDown:
        """Cuts a parent's weights `[outputs, parents]` and bias into blocks."""
        spec = plan.spec
        layer = cls(spec, stock, dtype=weight.dtype, device="meta")
        # Children that write the same outputs start as copies, side by side.
        written = [tile[:1] if layer.replicated else tile for tile in plan.outputs]
        copies = spec.alpha if layer.replicated else 1
        blocks = (
            weight[:, start:stop]
            .index_select(0, rows.to(weight.device))[:, None]
            .expand(-1, copies, -1)
            for (start, stop), tile in zip(spec.tiles, written, strict=True)
            for rows in tile
        )
        tensors = {} if bias is None else {"bias": bias}
        if layer.outputs is not None:
            outputs = torch.stack([torch.cat(tile) for tile in written])
            tensors["outputs"] = outputs.to(layer.outputs.dtype)
        layer.bind({name: t.detach().to(weight.device).clone() for name, t in tensors.items()})
        layer.bind({"weight": _in_line(blocks, weight, layer.weight.numel())})
        return layer

    def project(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., outputs]`."""
        return block.down(self.spec, hidden, self.outputs, self.weight, self.bias)

    def dense_weight(self) -> Tensor:
        return self.by_expert(block.dense_down(self.spec, self.outputs, self.weight))

    def check(self, name: str) -> None:
        outputs = self._buffers["outputs"]
        if outputs is not None:
            check_index(f"{name}.outputs", outputs, self.spec.out_features)

    def reset_derived(self) -> None:
        if self.outputs is not None:
            self.outputs = self.outputs.to(smallest_int(self.spec.out_features))
