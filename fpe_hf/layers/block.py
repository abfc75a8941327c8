"""The `block` layout: every child of every tile is a small dense matrix over gathered inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels import few, gpu, mlp
from ..kernels.block import DownPart, UpPart, project_down, project_up, whole_parts
from ..kernels.gpu_shapes import BlockShape
from ..kernels.ordinary import is_ordinary
from ..kernels.pointwise import Source
from ..linear import CHANNEL_AXES
from ..packing import smallest_int
from ..planning import BlockPlan, BlockSpec
from .base import DownLayer, UpLayer
from .hidden import Hidden, Pending, finish, may_wait


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


_Made = TypeVar("_Made")
_kept: WeakKeyDictionary[torch.nn.Module, dict[type, tuple[Any, ...]]] = WeakKeyDictionary()


def kept(
    layer: torch.nn.Module,
    kind: type,
    tensors: tuple[Tensor | None, ...],
    make: Callable[[], _Made],
) -> _Made:
    """What is made of a layer's tensors, kept from call to call: for a few tokens, making it would
    take as long as the products.

    Args:
        layer: The layer.
        kind: What it is.
        tensors: What it is made of.
        make: Makes it.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    if graph or not is_ordinary(*given) or any(tensor.is_inference() for tensor in given):
        return make()
    # Where they are, and whether they were written to: some are copied.
    key = [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in given]
    known = _kept.setdefault(layer, {})
    if kind not in known or known[kind][0] != key:
        with torch.no_grad():
            known[kind] = key, given, make()  # the tensors, so that nothing else gets their ids
    found: _Made = known[kind][-1]
    return found


FEWEST_TOKENS = 8
FEWEST_PRODUCTS = 20_000_000
"""Tokens, and multiply-adds, from which it pays to put an up projection off, other than for a
kernel in C."""


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """The tensors as autocast would hand them to a linear function."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _in_line(blocks: Iterable[Tensor], weight: Tensor, count: int) -> Tensor:
    """Blocks one after the other, `[count]`, each copied once, as they may be large."""
    line, place = weight.new_empty(count, requires_grad=False), 0
    for block in blocks:
        line[place : place + block.numel()].view(block.shape).copy_(block.detach())
        place += block.numel()
    return line


class BlockUp(UpLayer):
    """Up projection in the `block` layout.

    Attributes:
        recompute: Whether, in training, the pre-activations are made anew for the backward pass, if
            the whole MLP runs as one operation.
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
        self.parts, self.shape = whole_parts(spec), BlockShape.of_up(spec)
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
        numbers = (self.inputs, self.weight, self.bias, self.coupling)
        if few.usable(x, self.in_features, *numbers[1:]):
            return kept(self, few.FewUp, numbers, lambda: few.FewUp(self.spec, *numbers))(x)
        if self._may_wait(x):
            return self._put_off(x)
        return self._project(x, *numbers[1:])

    def _project(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, coupling: Tensor | None
    ) -> Tensor:
        if gpu.usable(x, weight, self.shape.alpha):
            mu = self.couplings() if coupling is None else coupling.view(self.shape.sources, -1)
            return gpu.up(x, weight, self.inputs, bias, self.shape, coupling=mu)
        numbers = (self.inputs, weight, bias, coupling)
        ups = kept(
            self,
            UpPart,
            numbers,
            lambda: [UpPart(self.spec, part, *numbers) for part in self.parts],
        )
        return project_up(self.spec, ups, x)

    def _may_wait(self, x: Tensor) -> bool:
        """Whether it pays, and harms nobody, to put the call off (see `fpe_hf.layers.hidden`)."""
        if torch.compiler.is_compiling():  # before any number becomes a condition
            return False
        tokens = x.numel() // self.in_features
        many = tokens >= FEWEST_TOKENS and tokens * self.weight.numel() >= FEWEST_PRODUCTS
        return (
            x.is_cpu
            and tokens > 0
            and (many or mlp.fits(x, self.weight))
            and CHANNEL_AXES[self.stock] == -1
            and not (self._forward_hooks or self._forward_pre_hooks)
            and may_wait(x, *self.numbers().values())
        )

    def _put_off(self, x: Tensor) -> Tensor:
        x, weight, bias, coupling = _autocast(x, self.weight, self.bias, self.coupling)
        numbers = (self.inputs, weight, bias, coupling)
        pending = Pending(self.spec, x, numbers, self._project, self.recompute)
        source = 0 if self.spec.fused is None else -1
        return Hidden.wait(Source(pending, source), x.new_zeros(1))

    def dense_weight(self) -> Tensor:
        spec = self.spec
        parts = []
        for part in self.parts:
            up = UpPart(spec, part, self.inputs, self.weight, None, self.coupling)
            parts.append(up.dense(spec.in_features).permute(2, 0, 1, 3, 4).flatten(1, 3))
        return self.merge_sources(torch.cat(parts, 1))

    def children_mask(self) -> Tensor:
        spec = self.spec
        mask = torch.zeros(spec.alpha, spec.all_parents, spec.in_features, dtype=torch.bool)
        for tile, (start, stop) in enumerate(spec.tiles):
            for child, columns in enumerate(self._columns(tile)):
                mask[child, start:stop, columns.cpu()] = True
        return mask

    def cover(self) -> tuple[bool, float]:
        disjoint, covered = True, 0
        for (start, stop), inputs in zip(self.spec.tiles, self.inputs.cpu().long(), strict=True):
            readers = inputs.bincount(minlength=self.spec.in_features)
            disjoint &= int(readers.max()) <= 1
            covered += (stop - start) * int(readers.count_nonzero())
        return disjoint, covered / (self.spec.all_parents * self.spec.in_features)

    def check(self, name: str) -> None:
        inputs: Any = self._buffers["inputs"]
        check_index(f"{name}.inputs", inputs, self.spec.in_features)

    def reset_derived(self) -> None:
        self.inputs = self.inputs.to(smallest_int(self.spec.in_features))  # old files: int16

    def _columns(self, tile: int) -> tuple[Tensor, ...]:
        columns: tuple[Tensor, ...] = self.inputs[tile].long().split(self.spec.child_inputs)
        return columns


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
        self.parts, self.shape = whole_parts(spec), BlockShape.of_down(spec)
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
        if isinstance(hidden, Hidden):
            weight, bias = _autocast(self.weight, self.bias)
            result = finish(hidden, self.spec, self.outputs, weight, bias)
            if result is not None:
                return result
            hidden = hidden.made()
        if self.outputs is not None and gpu.usable(hidden, self.weight, self.shape.alpha):
            return gpu.down(hidden, self.weight, self.outputs, self.bias, self.shape)
        numbers = (self.outputs, self.weight, self.bias)
        if few.usable(hidden, self.in_features, self.weight, self.bias):
            own = kept(self, few.FewDown, numbers, lambda: few.FewDown(self.spec, *numbers))
            return own(hidden)
        downs = kept(
            self,
            DownPart,
            (self.outputs, self.weight),
            lambda: [DownPart(self.spec, part, self.outputs, self.weight) for part in self.parts],
        )
        return project_down(self.spec, downs, hidden, self.bias)

    def dense_weight(self) -> Tensor:
        spec = self.spec
        parts = []
        for part in self.parts:
            down = DownPart(spec, part, self.outputs, self.weight)
            parts.append(down.dense(spec.out_features).permute(2, 0, 1, 3).flatten(1))
        return self.by_expert(torch.cat(parts, 1))

    def children_mask(self) -> Tensor:
        spec = self.spec
        mask = torch.zeros(spec.alpha, spec.out_features, spec.all_parents, dtype=torch.bool)
        for tile, (start, stop) in enumerate(spec.tiles):
            rows = self._rows(tile)
            for child in range(spec.alpha):
                own = rows[0] if self.replicated else rows[child]
                mask[child, own.cpu(), start:stop] = True
        return mask

    def check(self, name: str) -> None:
        outputs = self._buffers["outputs"]
        if outputs is not None:
            check_index(f"{name}.outputs", outputs, self.spec.out_features)

    def reset_derived(self) -> None:
        if self.outputs is not None:
            self.outputs = self.outputs.to(smallest_int(self.spec.out_features))

    def _rows(self, tile: int) -> tuple[Tensor, ...]:
        """Outputs written by each of a tile's matrices."""
        if self.outputs is None:
            return (torch.arange(self.spec.out_features, device=self.weight.device),)
        rows = self.outputs[tile].long()
        return (rows,) if self.replicated else rows.split(self.spec.child_outputs)
